"""Loss curves of all arms in one picture: an SVG file that asks for nothing from elsewhere."""

from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

WIDTH, HEIGHT, MARGIN, LEGEND = 860, 420, 48, 20
# Told apart also by those who see few colours (Okabe, Ito 2008).
COLOURS = ("#000000", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999")


def curves_svg(title: str, losses: Mapping[str, Sequence[float]]) -> str:
    """An SVG document with one line per arm over the steps, the same scale for all.

    losses: the loss of each step, by arm.
    """
    most_steps = max(map(len, losses.values()))
    values = [value for each in losses.values() for value in each]
    low, high = min(values), max(values)

    def place(step: int, loss: float) -> tuple[float, float]:
        across = (step - 1) / max(1, most_steps - 1)
        up = (loss - low) / ((high - low) or 1)
        return MARGIN + across * (WIDTH - 2 * MARGIN), HEIGHT - MARGIN - up * (HEIGHT - 2 * MARGIN)

    parts = [_text(MARGIN, 24, title)]
    for loss in (low, (low + high) / 2, high):
        across, down = place(1, loss)
        parts += [
            _line([(across, down), (WIDTH - MARGIN, down)], "#dddddd"),
            _text(4, down + 4, f"{loss:.2f}"),
        ]
    for step in sorted({1, (most_steps + 1) // 2, most_steps}):
        parts.append(_text(place(step, low)[0], HEIGHT - MARGIN + 18, str(step)))
    for number, (name, each) in enumerate(losses.items()):
        colour, down = COLOURS[number % len(COLOURS)], HEIGHT + LEGEND * number
        parts.append(_line([place(step, loss) for step, loss in enumerate(each, start=1)], colour))
        parts += [
            _line([(MARGIN, down - 4), (MARGIN + 24, down - 4)], colour),
            _text(MARGIN + 32, down, name),
        ]
    size = f'viewBox="0 0 {WIDTH} {HEIGHT + LEGEND * len(losses)}"'
    style = 'font-family="sans-serif" font-size="12" style="background: white"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>\n' + "\n".join(parts) + "\n</svg>\n"


def _text(across: float, down: float, text: str) -> str:
    return f'<text x="{across:.1f}" y="{down:.1f}">{escape(text)}</text>'


def _line(points: Sequence[tuple[float, float]], colour: str) -> str:
    places = " ".join(f"{across:.1f},{down:.1f}" for across, down in points)
    return f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
