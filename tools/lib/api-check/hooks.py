"""What schemathesis needs to know of a control socket (SCHEMATHESIS_HOOKS).

Requests go to the Unix socket that TANDEM_SOCKET names. Many of them are made to hit: what is in the path is in the body too,
and names are often those of devices that are there. What would end the process is left out: a test that ends it by mistake
has to stand out.
"""

import os
import socket
import zlib

import schemathesis
from urllib3.connection import HTTPConnection

SOCKET = os.environ["TANDEM_SOCKET"]
# Names of what the VM has.
DRIVES = ["root", "data", "image"]
INTERFACES = ["eth0", "eth1"]
# Ways to end the VM.
ENDS = ["Reset", "Stop"]


def connect(self):
    """A connection for urllib3, whatever the host is called."""
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    if isinstance(self.timeout, (int, float)):
        stream.settimeout(self.timeout)
    stream.connect(SOCKET)
    return stream


HTTPConnection._new_conn = connect


@schemathesis.hook
def before_call(context, case, kwargs):
    body = case.body
    path = case.path_parameters or {}
    # The same case is changed in the same way in each run.
    chance = zlib.crc32(repr((body, path)).encode("utf-8", "surrogatepass"))
    for name, known in (("drive_id", DRIVES), ("iface_id", INTERFACES)):
        if name in path:
            if chance % 4 > 0:
                path[name] = known[chance // 4 % len(known)]
            if isinstance(body, dict) and chance % 8 > 0:
                body[name] = path[name]
    if isinstance(body, dict) and body.get("action_type") in ENDS:
        body["action_type"] = "FlushMetrics"
