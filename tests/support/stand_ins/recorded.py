"""What the stand-ins of trackers do and leave: in a file of ``TOLD``, a line of JSON for each call.

``MISBEHAVES`` is CALL:HOW: at this call (or any: ``*``) a tracker that raises, disconnects,
hangs or dies.
"""

import json
import os
import time
from typing import Any

HANGS_SECONDS = 3600.0


def told(call: str, **values: Any) -> None:
    """Keep a call, or misbehave."""
    where, _, how = os.environ.get("MISBEHAVES", "").partition(":")
    if how and where in (call, "*"):
        if how == "raises":
            raise RuntimeError(f"no route to host\nwith {os.environ.get('WANDB_API_KEY')}")
        if how == "disconnects":
            raise ConnectionError("no route to host")
        if how == "dies":
            os._exit(9)
        time.sleep(HANGS_SECONDS)
    with open(os.environ["TOLD"], "a") as file:
        file.write(json.dumps({"call": call, **values}) + "\n")


def known() -> list[dict[str, Any]]:
    """All calls so far, of every process."""
    try:
        with open(os.environ["TOLD"]) as file:
            return [json.loads(line) for line in file]
    except FileNotFoundError:
        return []
