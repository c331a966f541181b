"""What a person sees of the results: tables of 80 columns."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from runs import FINETOOTH

Summary = Mapping[str, Mapping[str, float]]


def print_comparison(console: Console, size: str, result: Mapping[str, Any]) -> None:
    """Prints rates with their spread, then what a run costs as a whole, then what is remarkable."""
    figures: Mapping[str, Summary] = result["figures"]
    medians = {
        name: {figure: values["median"] for figure, values in each.items()} for name, each in figures.items()
    }
    rates = _table(f"{size}: tokens per second", "targets (least - most)", "useful", "of peak", "ratio")
    costs = _table(f"{size}: whole runs", "first step", "per step", "to saved", "whole", "memory", "padding")
    for name, each in medians.items():
        marked = f"{name} *" if name == result["best_tuned"] else name
        ratio = result["ratios"][name]["target_tokens_per_second"] if name != FINETOOTH else 1
        rates.add_row(
            marked,
            _spread(figures[name]["target_tokens_per_second"]),
            f"{each['useful_tokens_per_second']:,.0f}",
            f"{each['share_of_peak']:.0%}",
            f"{ratio:.2f}",
        )
        names = ("seconds_to_first_step", "seconds_per_step", "seconds_from_last_step", "seconds")
        seconds = (f"{each[name]:.1f} s" for name in names)
        costs.add_row(marked, *seconds, f"{each['peak_memory_mb']:,.0f} MB", f"{each['padding']:.0%}")
    share = medians[FINETOOTH]["share_of_targets"]
    rates.caption = f"{share:.0%} of the tokens are targets; ratio: finetooth's rate to this one"
    costs.caption = "medians; * the fastest of TRL's tuned variants"
    console.print(rates, costs)
    for remark in _remarks(result):
        console.print(remark, highlight=False)


def print_machine(console: Console, peaks: Mapping[str, Any]) -> None:
    """Prints what the machine can do at best."""
    rates = ", ".join(f"{name} {rate / 1e9:,.0f}" for name, rate in peaks["peak_flops"].items())
    shape = " x ".join(map(str, peaks["head"]["shape"]))
    console.print(f"{peaks['device']}, {peaks['threads']} threads; matrix products, GFLOP/s: {rates}")
    console.print(f"head and loss, {shape}, both ways: {peaks['head']['seconds'] * 1000:,.1f} ms")
    if not peaks["bf16_pays"]:
        console.print("bf16 does not pay here: TRL, whose default it is, is given fp32")


def print_scaling(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints what one thing after the other costs, each with all others equal."""
    table = _table("finetooth alone", "useful (least - most)", "of peak", "fill", "first step", "memory")
    for row in rows:
        figures: Summary = row["figures"]
        table.add_row(
            f"{row['varied']} {row['value']}",
            _spread(figures["useful_tokens_per_second"]),
            f"{figures['share_of_peak']['median']:.0%}",
            f"{1 - figures['padding']['median']:.1%}",
            f"{figures['seconds_to_first_step']['median']:.1f} s",
            f"{figures['peak_memory_mb']['median']:,.0f} MB",
        )
    table.caption = (
        "medians; the first model's documents are 1,000, of mixed lengths, where nothing else is said"
    )
    console.print(table)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", caption_justify="left", box=None, pad_edge=False)
    table.add_column("", overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _spread(values: Mapping[str, float]) -> str:
    return f"{values['median']:,.0f} ({values['least']:,.0f} - {values['most']:,.0f})"


def _remarks(result: Mapping[str, Any]) -> list[str]:
    remarks = [f"left out: {name}: {reason}" for name, reason in result["left_out"].items()]
    for name, difference in result["loss_differences"].items():
        num_steps = len(result["losses"][name])
        remarks.append(f"{name}: losses within {difference:.1g} of {FINETOOTH}'s, all {num_steps} steps")
    for name, each in result["figures"].items():
        if "gpu_busy" in each:
            remarks.append(f"{name}: GPU busy {each['gpu_busy']['median']:.0%}")
        if each["recompiles"]["most"]:
            remarks.append(f"{name}: compiled anew {each['recompiles']['most']:.0f} times after warm-up")
    return remarks
