"""Writes the parameters of the small base model as a .pt file, as other systems do (see legacy_pt.yaml)."""

from pathlib import Path

import torch
from safetensors.torch import load_file

out = Path("runs/examples/base.pt")
out.parent.mkdir(parents=True, exist_ok=True)
torch.save(load_file("src/finetooth/assets/base/model.safetensors"), out)
print(f"written: {out}")
