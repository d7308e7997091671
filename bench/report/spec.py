"""What a suite's `report` section says: which tables and figures are made of its records. Torch-free."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

#: default headings of row keys; any other key is called by its last part
ROW_TITLES = {
    "dataset": "data set",
    "tokenizer": "network architecture",
    "tokenizer.quantizer": "quantizer type",
    "tokenizer.quantizer.codebook_dim": "codebook dim.",
    "tokenizer.quantizer.codebook_size": "codebook size",
    "train.seed": "seed",
    "train.data": "training images",
}
SHORT = {"seed": "train.seed", "seeds": "train.seed"}

#: files that every report may have
TAKEN = ("table", "curves", "losses", "codebook", "reconstructions")

#: a file's name is made of it
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=80)]
Scalar = bool | int | float | str | None


def _as_tuple(value: Any) -> Any:
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value   # strict tuples take no list from a validator


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RowKey(Frozen):
    """A key whose values head the rows: a dotted key of the suite, or of a component."""

    key: str                                # tokenizer, tokenizer.quantizer.codebook_size, ...
    title: str | None = None                # heading; default: see ROW_TITLES
    link: bool = False                      # link a component's title to its source file
    descending: bool = False                # largest first
    order: tuple[Scalar, ...] = ()          # these values (a component: name or title) first
    only: tuple[Scalar, ...] = ()           # these alone, in this order

    @property
    def resolved(self) -> str:
        """The key in full: `seed` is short for train.seed; a component is meant by its name, too."""
        return SHORT.get(self.key, self.key).removesuffix(".name")

    @property
    def heading(self) -> str:
        if self.title is not None:
            return self.title
        last = self.resolved.rpartition(".")[2].replace("_", " ")
        return ROW_TITLES.get(self.resolved, last)


class ColumnKey(Frozen):
    """A measured value by its name, or a dotted key into parameters, cost, layout or monitors."""

    key: str                                # psnr, usage_window, parameters.total, ...
    title: str | None = None                # heading; default: the metric's own title
    decimals: Annotated[int, Field(ge=0, le=12)] | None = None      # default: the metric's; per cent: 2
    note: str = ""                          # footnote at the heading
    mixed: bool = False                     # show numbers of other protocols too, footnoted; else they are refused
    published: bool = False                 # with two columns beside it: the published number, and ours minus it


class TableSpec(Frozen):
    """One table: rows are groups of runs that differ in `over` alone, which is averaged."""

    name: Name
    title: str | None = None
    caption: str | None = None
    rows: tuple[str | RowKey, ...]
    columns: tuple[str | ColumnKey, ...]
    over: Annotated[tuple[str, ...], BeforeValidator(_as_tuple)] = ("train.seed",)
    sanity: bool = True                     # with the suite's sanity rows, where it asks for some

    @property
    def heading(self) -> str:
        return self.title if self.title is not None else self.name.replace("_", " ")

    def row_keys(self) -> tuple[RowKey, ...]:
        return tuple(RowKey(key=r) if isinstance(r, str) else r for r in self.rows)

    def column_keys(self) -> tuple[ColumnKey, ...]:
        return tuple(ColumnKey(key=c) if isinstance(c, str) else c for c in self.columns)

    def over_keys(self) -> tuple[str, ...]:
        """Keys to average over, in full; a key that heads rows is not averaged."""
        rows = {r.resolved for r in self.row_keys()}
        return tuple(k for k in (SHORT.get(o, o) for o in self.over) if k not in rows)


class FigureSpec(Frozen):
    """One figure: each of `y` against `x`, one panel a column.

    A `line` figure has a line for each `hue` and whatever else differs, points per run and their mean; `x` is a setting
    (tokenizer.quantizer.codebook_size) or what is known of a run (layout.total_codes, parameters.total). A `tradeoff`
    has a point a row and the best that can be had at each `x`, which may be a measured value, too.
    """

    name: Name
    title: str | None = None
    kind: Literal["line", "tradeoff"] = "line"
    x: str | RowKey
    y: Annotated[tuple[str | ColumnKey, ...], BeforeValidator(_as_tuple)]
    hue: str | RowKey | None = None
    over: Annotated[tuple[str, ...], BeforeValidator(_as_tuple)] = ("train.seed",)
    published: bool = False                 # with the published numbers of the same settings (the report's `published`)

    @property
    def x_key(self) -> RowKey:
        return RowKey(key=self.x) if isinstance(self.x, str) else self.x

    @property
    def hue_key(self) -> RowKey | None:
        return RowKey(key=self.hue) if isinstance(self.hue, str) else self.hue

    def table(self, *, x_heads_rows: bool = True) -> TableSpec:
        """The table that holds this figure's numbers: grouping, means and titles are decided in one place."""
        rows = ((self.hue,) if self.hue is not None else ()) + ((self.x,) if x_heads_rows else ())
        columns = tuple(ColumnKey(key=c) if isinstance(c, str) else c for c in self.y)
        return TableSpec(name=self.name, title=self.title, rows=rows or ("tokenizer",), over=self.over, sanity=False,
                         columns=tuple(c.model_copy(update={"published": False}) for c in columns))


class PublishedSpec(Frozen):
    """Which published system the runs of a suite are, in the words of results/published.csv.

    `system` and `variant` may hold settings of a run in braces: "K={tokenizer.quantizer.codebook_size}".
    """

    system: str
    variant: str = ""
    protocol: str | None = None             # only numbers of this protocol; default: any that matches ours
    dataset: str | None = None              # default: the run's


class ReportSpec(Frozen):
    """Tables and figures of one suite. Names become file names: table-<name>.tex, <name>.svg."""

    tables: tuple[TableSpec, ...] = ()
    figures: tuple[FigureSpec, ...] = ()
    published: tuple[PublishedSpec, ...] = ()
    machine: str = ""                       # part of the name of that whose times cost columns show; "": where most rows were timed

    def ordered(self, key: str, values: tuple[Scalar, ...]) -> ReportSpec:
        """With these values of a row key first, in tables that say no order of it."""
        def of(table: TableSpec) -> TableSpec:
            rows = (k.model_copy(update={"order": values}) if k.resolved == key and not (k.order or k.only or k.descending) else k
                    for k in table.row_keys())
            return table.model_copy(update={"rows": tuple(rows)})

        return self.model_copy(update={"tables": tuple(map(of, self.tables))})

    @model_validator(mode="after")
    def _names_differ(self) -> ReportSpec:
        for kind, parts in (("tables", self.tables), ("figures", self.figures)):
            names = [part.name for part in parts]
            if double := next((n for n in names if names.count(n) > 1), None):
                raise ValueError(f"two {kind} are called {double!r}; give each its own name")
        for figure in self.figures:
            if figure.name in TAKEN or figure.name.startswith(("table-", "codebook-")):
                raise ValueError(f"a figure cannot be called {figure.name!r}: that name is taken")
            if figure.published and not self.published:
                raise ValueError(f"figure {figure.name!r} shows published numbers; say in `report.published` which systems "
                                 f"the runs are")
        return self
