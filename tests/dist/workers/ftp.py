"""An FTP server on loopback that serves a folder to anybody: a store that is reached by a URL. Prints its port."""

import sys
import threading

from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.handlers import FTPHandler
from pyftpdlib.servers import FTPServer


def main(folder: str) -> None:
    """Serve until the standard input is closed."""
    authorizer = DummyAuthorizer()
    authorizer.add_anonymous(folder, perm="elradfmwMT")
    FTPHandler.authorizer = authorizer
    server = FTPServer(("127.0.0.1", 0), FTPHandler)
    print(server.socket.getsockname()[1], flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1])
