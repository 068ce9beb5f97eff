"""Draw docs/architectures.png, the four models in one style: `python docs/architectures.py`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Patch
from matplotlib.path import Path as Outline
from matplotlib.text import Text

FIGURE = Path(__file__).with_suffix(".png")
# fill and edge of each kind of box
KINDS = {
    "input": ("#eceff1", "#78909c"),
    "embedding": ("#d7e7f6", "#3b78b0"),
    "interaction, gate, attention": ("#fde5cb", "#d07a22"),
    "MLP": ("#dbefd8", "#4b9549"),
    "concatenation, sum": ("#ffffff", "#606c76"),
    "output": ("#eadcf3", "#8455a5"),
}
INTERACTION, JOIN = "interaction, gate, attention", "concatenation, sum"
LETTERS = [
    "B rows of a batch, I dense columns, F categorical fields, D embedding size, P feature pairs",
    "X width of x, E experts, O width of an expert's output, K tasks",
    "L length of the history, C feature columns of a user, Z latent factors, ⇢ without gradient",
]
INK, FAINT = "#263238", "#546e7a"
HEIGHT = 0.42  # of a box; all lengths are inches
PITCH = 0.66  # from one row of boxes to the next
WIDTH = 4.3  # of a model
RADIUS = 0.14  # of the circle of a sum


@dataclass(frozen=True)
class Box:
    """A box or a frame by its centre, and the text in it."""

    x: float
    y: float
    width: float
    height: float = HEIGHT
    texts: tuple[Text, ...] = ()

    @property
    def top(self) -> float:
        return self.y + self.height / 2

    @property
    def bottom(self) -> float:
        return self.y - self.height / 2


class Panel:
    """One model; the origin of its coordinates is at the bottom left, and row 0 has the inputs."""

    def __init__(self, axes: Axes, title: str, left: float, bottom: float, rows: int):
        self.axes, self.left, self.bottom = axes, left, bottom
        self.boxes: list[Box] = []
        top = bottom + (rows - 1) * PITCH + HEIGHT + 0.1
        axes.text(left + WIDTH / 2, top, title, ha="center", va="bottom", size=11, weight="bold", color=INK)

    def _height(self, row: float) -> float:
        """The height of the middle of a row."""
        return self.bottom + HEIGHT / 2 + row * PITCH

    def box(self, kind: str, row: int, x: float, width: float, text: str, shape: str) -> Box:
        """A box with its name and, below it, the shape of its output."""
        x, y = self.left + x, self._height(row)
        fill, edge = KINDS[kind]
        corner = (x - width / 2, y - HEIGHT / 2)
        style = "round,pad=0,rounding_size=0.06"
        self.axes.add_patch(FancyBboxPatch(corner, width, HEIGHT, style, fc=fill, ec=edge, lw=1.1, zorder=3))
        texts = tuple(
            self.axes.text(x, y + dy, line, ha="center", va="center", size=size, color=color, zorder=4)
            for line, dy, size, color in [(text, 0.085, 8.2, INK), (shape, -0.095, 7.4, FAINT)]
        )
        self.boxes.append(Box(x, y, width, texts=texts))
        return self.boxes[-1]

    def up(self, lower: Box, upper: Box, x: float | None = None) -> None:
        """An arrow straight up between two boxes, at x or in the middle of the narrower one."""
        at = self.left + x if x is not None else min(lower, upper, key=lambda box: box.width).x
        self.arrow([(at, lower.top), (at, upper.bottom)])

    def arrow(self, points: Sequence[tuple[float, float]], dashed: bool = False) -> None:
        """An arrow along some points; dashed if the gradient stops there."""
        line = dict(color=FAINT, lw=1.1, ls=(0, (2, 1.2)) if dashed else "-")
        head = "-|>,head_length=3.2,head_width=1.7"
        patch = FancyArrowPatch(path=Outline(points), arrowstyle=head, zorder=2, **line)
        patch.set_joinstyle("round")
        self.axes.add_patch(patch)

    def plus(self, row: int, x: float) -> tuple[float, float]:
        """A circle that sums its inputs; returns its centre."""
        x, y = self.left + x, self._height(row)
        fill, edge = KINDS[JOIN]
        self.axes.add_patch(Circle((x, y), RADIUS, fc=fill, ec=edge, lw=1.1, zorder=3))
        self.axes.text(x, y - 0.005, "+", ha="center", va="center", size=11, color=INK, zorder=4)
        return x, y

    def note(self, row: float, x: float, text: str, ha: str = "center") -> None:
        self.axes.text(self.left + x, self._height(row), text, ha=ha, va="center", size=7.4, color=FAINT, zorder=4)

    def frame(self, row: int, left: float, right: float) -> Box:
        """A frame around boxes of one row."""
        frame = Box(self.left + (left + right) / 2, self._height(row), right - left, HEIGHT + 0.12)
        style = "round,pad=0,rounding_size=0.06"
        edge = dict(ec=FAINT, lw=0.9, ls=(0, (3, 2)))
        corner = (self.left + left, frame.bottom)
        self.axes.add_patch(FancyBboxPatch(corner, frame.width, frame.height, style, fc="none", zorder=1, **edge))
        return frame


def deepfm(axes: Axes, left: float, bottom: float) -> Panel:
    panel = Panel(axes, "DeepFM", left, bottom, rows=6)
    dense = panel.box("input", 0, 1.05, 1.9, "dense columns", "(B, I)")
    ids = panel.box("input", 0, 3.25, 1.9, "ids", "(B, F)")
    scaled = panel.box("embedding", 1, 1.05, 1.9, "value × row of its column", "(B, I, D + 1)")
    looked_up = panel.box("embedding", 1, 3.25, 1.9, "embedding table", "(B, F, D + 1)")
    rows = panel.box("embedding", 2, 2.15, 4.1, "weight w and vector v of each field", "(B, I + F) and (B, I + F, D)")
    first_order = panel.box(INTERACTION, 3, 0.77, 1.18, "Σ wᵢ", "(B,)")
    pairs = panel.box(INTERACTION, 3, 2.15, 1.3, "pairs: Σ ⟨vᵢ, vⱼ⟩", "(B,)")
    deep = panel.box("MLP", 3, 3.59, 1.22, "MLP", "(B, (I + F) D) → (B,)")
    panel.frame(3, 0.1, 2.88)
    panel.note(3.53, 0.12, "FM", ha="left")
    logit = panel.box("output", 5, 2.15, 1.9, "logit of a click", "(B,)")
    for lower, upper in [(dense, scaled), (ids, looked_up), (scaled, rows), (looked_up, rows)]:
        panel.up(lower, upper)
    for upper in (first_order, pairs, deep):
        panel.up(rows, upper)
    x, y = panel.plus(4, 2.15)
    panel.arrow([(first_order.x, first_order.top), (first_order.x, y), (x - RADIUS, y)])
    panel.arrow([(x, pairs.top), (x, y - RADIUS)])
    panel.arrow([(deep.x, deep.top), (deep.x, y), (x + RADIUS, y)])
    panel.note(4.28, 2.36, "+ bias", ha="left")
    panel.arrow([(x, y + RADIUS), (x, logit.bottom)])
    return panel


def dlrm(axes: Axes, left: float, bottom: float) -> Panel:
    panel = Panel(axes, "DLRM", left, bottom, rows=6)
    dense = panel.box("input", 0, 1.05, 1.9, "dense columns", "(B, I)")
    ids = panel.box("input", 0, 3.25, 1.9, "ids", "(B, F)")
    bottom_mlp = panel.box("MLP", 1, 1.05, 1.9, "bottom MLP", "(B, D)")
    table = panel.box("embedding", 1, 3.25, 1.9, "embedding table", "(B, F, D)")
    products = panel.box(INTERACTION, 2, 2.75, 2.9, "dot products of all pairs of 1 + F vectors", "(B, P)")
    joined = panel.box(JOIN, 3, 2.15, 4.1, "concatenate", "(B, D + P)")
    top_mlp = panel.box("MLP", 4, 2.15, 1.9, "top MLP", "(B, D + P) → (B,)")
    logit = panel.box("output", 5, 2.15, 1.9, "logit of a click", "(B,)")
    for lower, upper in [(dense, bottom_mlp), (ids, table), (table, products), (products, joined), (joined, top_mlp)]:
        panel.up(lower, upper)
    panel.up(top_mlp, logit)
    panel.up(bottom_mlp, products, x=1.65)
    panel.up(bottom_mlp, joined, x=0.65)
    return panel


def mmoe(axes: Axes, left: float, bottom: float) -> Panel:
    panel = Panel(axes, "MMoE", left, bottom, rows=7)
    dense = panel.box("input", 0, 1.05, 1.9, "dense columns", "(B, I)")
    ids = panel.box("input", 0, 3.25, 1.9, "ids", "(B, F)")
    encoding = panel.box("embedding", 1, 1.05, 1.9, "piecewise linear encoding", "(B, bins of all columns)")
    table = panel.box("embedding", 1, 3.25, 1.9, "embedding table", "(B, F, D)")
    x = panel.box(JOIN, 2, 2.15, 4.1, "concatenate to x", "(B, X)")
    for expert, at in [("1", 1.48), ("E", 2.82)]:
        panel.box("MLP", 3, at, 0.78, f"expert {expert}", "(B, O)")
    panel.note(3, 2.15, "…")
    experts = panel.frame(3, 1.02, 3.28)
    for lower, upper in [(dense, encoding), (ids, table), (encoding, x), (table, x), (x, experts)]:
        panel.up(lower, upper)
    logits = panel.box("output", 6, 2.15, 4.1, "one logit per task", "(B, K)")
    for task, at, gate_at, experts_at in [("1", 1.02, 0.5, 1.65), ("K", 3.28, 3.8, 2.65)]:
        gate = panel.box(INTERACTION, 3, gate_at, 0.8, f"gate {task}", "(B, E)")
        mix = panel.box(INTERACTION, 4, at, 1.84, "Σ gateᵢ · expertᵢ", "(B, O)")
        tower = panel.box("MLP", 5, at, 1.84, f"tower {task}", "(B, O) → (B,)")
        panel.up(x, gate)
        panel.up(gate, mix)
        panel.up(experts, mix, x=experts_at)
        panel.up(mix, tower)
        panel.up(tower, logits)
    panel.note(4, 2.15, "…")
    panel.note(5, 2.15, "…")
    return panel


def bst(axes: Axes, left: float, bottom: float) -> Panel:
    panel = Panel(axes, "BST", left, bottom, rows=7)
    user = panel.box("input", 0, 0.44, 0.68, "user id", "(B,)")
    movie = panel.box("input", 0, 1.21, 0.7, "movie id", "(B,)")
    history = panel.box("input", 0, 2.13, 0.98, "past ratings", "(B, L)")
    features = panel.box("input", 0, 3.17, 0.94, "user features", "(B, C)")
    dense = panel.box("input", 0, 3.95, 0.5, "dense", "(B, 3)")
    factors = panel.box("embedding", 1, 0.62, 1.04, "factors, biases", "(B, 2, Z + 1)")
    vectors = panel.box("embedding", 1, 2.1, 1.52, "movie vectors", "(B, L + 1, D)")
    embedded = panel.box("embedding", 1, 3.29, 0.7, "vectors", "(B, 8 C)")
    sequence = panel.box("embedding", 2, 1.99, 1.3, "history, then target", "(B, L + 1, D)")
    transformer = panel.box(INTERACTION, 3, 1.99, 1.3, "transformer", "at the target: (B, D)")
    factorization = panel.box(INTERACTION, 4, 0.83, 1.46, "factorization", "(B,)")
    deep = panel.box("MLP", 4, 2.81, 2.3, "MLP", "(B, 2 D + 8 C + 3) → (B,)")
    output = panel.box("output", 6, 2.15, 1.9, "rating, or logit of a click", "(B,)")
    panel.up(user, factors)
    panel.up(movie, factors, x=1.03)
    panel.up(movie, vectors, x=1.45)
    panel.up(history, vectors)
    panel.arrow([(factors.x + factors.width / 2, factors.y), (vectors.x - vectors.width / 2, vectors.y)], dashed=True)
    panel.up(vectors, sequence)
    panel.note(2, 1.28, "+ residuals\n+ time gaps\n+ positions", ha="right")
    panel.up(sequence, transformer)
    panel.up(features, embedded)
    panel.up(factors, factorization, x=0.4)
    panel.up(transformer, factorization, x=1.45)
    panel.up(transformer, deep, x=2.3)
    panel.up(vectors, deep, x=2.75)
    panel.up(embedded, deep)
    panel.up(dense, deep, x=3.81)
    x, y = panel.plus(5, 2.15)
    panel.arrow([(factorization.x, factorization.top), (factorization.x, y), (x - RADIUS, y)])
    panel.arrow([(x, deep.top), (x, y - RADIUS)])
    right = panel.left + 4.09
    panel.arrow([(right, dense.top), (right, y), (x + RADIUS, y)])
    panel.note(5.2, 3.2, "expected rating")
    panel.arrow([(x, y + RADIUS), (x, output.bottom)])
    return panel


def draw() -> tuple[Figure, list[Panel]]:
    width, height = 9.1, 10.15
    figure = Figure((width, height), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    left, right, lower, upper = 0.1, width - WIDTH - 0.1, 1.1, 6.05
    panels = [deepfm(axes, left, upper), dlrm(axes, right, upper), mmoe(axes, left, lower), bst(axes, right, lower)]
    handles = [Patch(fc=fill, ec=edge, label=kind) for kind, (fill, edge) in KINDS.items()]
    figure.legend(handles=handles, loc="lower center", ncol=6, frameon=False, fontsize=8.2, bbox_to_anchor=(0.5, 0.066))
    for line, letters in enumerate(LETTERS):
        text = "     ".join(
            rf"$\bf{{{letter}}}$ {meaning}"
            for letter, meaning in (entry.split(" ", 1) for entry in letters.split(", "))
        )
        axes.text(width / 2, 0.55 - 0.18 * line, text, ha="center", va="center", size=7.8, color=FAINT)
    return figure, panels


def save(path: Path) -> None:
    draw()[0].savefig(path, dpi=200, pil_kwargs={"optimize": True})


if __name__ == "__main__":
    save(FIGURE)
