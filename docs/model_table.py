"""Write docs/model-table.md: what each model costs, beside what its authors print.

``python docs/model_table.py`` after a model has changed. Counting takes half a minute, so the page is kept.
"""

from pathlib import Path

from freqformer.models import model_names
from freqformer.tools import ModelRow, list_models

PAGE = Path(__file__).with_name("model-table.md")
HEAD = """# Table of models

`freqformer models` prints it: parameters and multiply-adds of one image as counted here ([how](models.md)), and what
the authors print of them and of the top-1 accuracy on ImageNet-1K. Transforms and filters are counted apart. None of
the accuracies has been measured again here. `python docs/model_table.py` writes this page.

| name | input | parameters, M | printed | GMACs | printed | of transforms and filters | printed top-1, % |
|---|---|---|---|---|---|---|---|
"""


def names() -> list[str]:
    """The models that are no tests' own."""
    return [name for name in model_names() if not name.startswith("test_")]


def line(row: ModelRow) -> str:
    """A model's line of the table."""
    cells = [
        f"`{row.name}`",
        "x".join(map(str, row.input_size)),
        f"{row.parameters / 1e6:.2f}",
        row.published_parameters or "",
        f"{row.gmacs:.3f}",
        row.published_flops or "",
        f"{row.spectral_gmacs:.4f}",
        "" if row.published_top1 is None else f"{row.published_top1}",
    ]
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    PAGE.write_text(HEAD + "".join(line(row) for name in names() for row in list_models(name)))
