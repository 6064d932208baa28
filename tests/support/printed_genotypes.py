"""Genotypes as published codes print them."""

from d2nas import Genotype


def printed(
    genotype: Genotype,
    *,
    concat: str = "range(2, 6)",
    quote: str = "'",
    start: str = "",
    pairs: str = "()",
    end: str = "",
) -> str:
    """Return a genotype with named arguments, in the order of DARTS's code."""
    cells = {
        cell_type: ", ".join(
            f"{pairs[0]}{quote}{operation}{quote}, {source}{pairs[1]}"
            for operation, source in genotype.cell(cell_type)
        )
        for cell_type in ("normal", "reduce")
    }
    return (
        f"{start}Genotype(normal=[{cells['normal']}], normal_concat={concat}, "
        f"reduce=[{cells['reduce']}], reduce_concat={concat}){end}"
    )
