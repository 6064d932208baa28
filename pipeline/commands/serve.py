"""``d2nas serve``: a bundle behind HTTP."""

from typing import Annotated

import typer

from .options import BundleArgument


def serve_command(
    bundle: BundleArgument,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; the default is this machine only.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any free port.")] = 8000,
    device: Annotated[
        str, typer.Option("--device", help="auto (as it was validated), cpu, cuda or cuda:N.")
    ] = "auto",
) -> None:
    """Serve a bundle by the Open Inference Protocol v2.

    SIGTERM or Ctrl+C ends it in order.

    At most 1024 connections (those that ask for nothing are closed first), and 384 MiB of memory
    for all of them, their requests and answers: 256 MiB, or twice the longest request, and 128 KiB
    for each connection. The model and the two requests in work come on top. A request has 30
    seconds to arrive and its answer 30 to be read; where room is short, the address that takes
    most gives way first. Behind a reverse proxy all clients have one address: it should hold
    requests until they are whole.
    """
    from d2nas.data.decoding import strict_pillow

    from ..bundle.reader import open_bundle
    from ..console import Console
    from ..serving.lifecycle import ServerSocket, Serving, check_extra, open_service

    check_extra()
    console = Console()
    opened = open_bundle(bundle)
    service = open_service(opened, device, console.warn)
    with ServerSocket(host, port) as listener:
        console.say(f"{opened.name}, version {opened.number}, on {service.device}")
        console.say(f"listening on {listener.url}")
        if not listener.is_loopback:
            console.warn("anyone who reaches this address can ask: no TLS, no passwords")
        with strict_pillow():  # here, in the main thread, for all that decode pictures
            Serving(service, listener, say=console.say).run()
    console.say("stopped")
