"""``d2nas presets``: the names of all presets, and what each is for."""

from .options import JsonOption


def presets_command(as_json: JsonOption = False) -> None:
    """List the presets."""
    from ..console import Console
    from ..presets import preset_about, preset_names

    rows = [(name, preset_about(name)) for name in preset_names()]
    if as_json:
        Console().data([{"preset": name, "about": about} for name, about in rows])
        return
    Console().table("presets", ("preset", "about"), rows)
