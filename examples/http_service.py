"""Serves an exported classifier over HTTP: POST an image file, get names and probabilities.

    python examples/http_service.py exports/digits --port=8000
    curl --data-binary @photo.jpg http://localhost:8000/

Needs what the artifact needs: jax, flatbuffers and Pillow.
"""

import argparse
import http.server
import json
import pathlib
import sys
import threading

import numpy as np

LARGEST = 32 * 2**20  # bytes of a request


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers one connection; `main` sets the artifact's classifier and decoder."""

    classifier = decode = None
    lock = threading.Lock()  # one image at a time on the device

    def do_GET(self) -> None:
        """Says what is served: a check that the service is up."""
        self.answer(200, {"classes": self.classifier.names})

    def do_POST(self) -> None:
        """Classifies the image file in the body."""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or not 0 < int(length) <= LARGEST:
            self.answer(411 if not length else 413, {"error": "send an image file, up to 32 MiB"})
            return
        data = self.rfile.read(int(length))
        try:
            image = self.decode(data)
        except Exception:  # Pillow raises many types for what is no image
            self.answer(400, {"error": "not a readable image"})
            return
        with self.lock:
            (probabilities,) = self.classifier([image])
        best = probabilities.argsort()[::-1][:5]
        names = self.classifier.names
        found = [{"name": names[i], "probability": float(probabilities[i])} for i in best]
        self.answer(200, {"predictions": found})

    def answer(self, status: int, content: dict) -> None:
        """Sends a JSON object."""
        body = json.dumps(content).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    """Runs the service until it is stopped."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifact", help="folder written with --format=serving")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free")
    args = parser.parse_args()
    if not (pathlib.Path(args.artifact) / "program.bin").is_file():
        parser.error(f"{args.artifact} holds no program.bin; export one with --format=serving")
    sys.path.insert(0, args.artifact)
    from classifier import Classifier, decode

    try:
        Handler.classifier, Handler.decode = Classifier(), staticmethod(decode)
    except ImportError as error:
        parser.error(str(error))
    size = Handler.classifier.image_size
    Handler.classifier([np.zeros((size, size, 3), np.uint8)])  # compiles before the first request
    server = http.server.ThreadingHTTPServer((args.host, args.port), Handler)
    print(f"serving {args.artifact} on http://{args.host}:{server.server_port}/", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
