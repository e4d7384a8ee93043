"""What schemathesis needs to know of a control socket (SCHEMATHESIS_HOOKS).

Requests go to the Unix socket that TANDEM_SOCKET names. Many of them are made to hit: what is in the path is in the body too,
and names are often those of devices that are there. What would end the process is left out: a test that ends it by mistake
has to stand out.
"""

import atexit
import collections
import os
import socket
import zlib

import schemathesis
from urllib3.connection import HTTPConnection

SOCKET = os.environ["TANDEM_SOCKET"]
# Names of what the VM has.
DRIVES = ["root", "data", "image"]
INTERFACES = ["eth0", "eth1"]
# Files that are there.
KERNEL, IMAGES = "/guest", ["/root.img", "/data.img", "/other.img"]
# Actions that would leave the phase that is tried.
ENDS = os.environ["TANDEM_API_LEAVE_OUT"].split()
# Removals of each kind that are tried: with a guest that does not answer, each takes its time.
REMOVALS = collections.Counter()
MOST_REMOVALS = int(os.environ["TANDEM_API_REMOVALS"])


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
            if case.method == "DELETE":
                REMOVALS[name] += 1
                path[name] = known[1] if REMOVALS[name] <= MOST_REMOVALS else "none_of_them"
            elif chance % 4 > 0:
                path[name] = known[chance // 4 % len(known)]
            if isinstance(body, dict) and chance % 8 > 0:
                body[name] = path[name]
    if isinstance(body, dict):
        if body.get("action_type") in ENDS:
            body["action_type"] = "FlushMetrics"
        for part in (body, body.get("boot-source"), *listed(body.get("drives"))):
            if isinstance(part, dict) and chance % 8 > 0:
                exist(part, chance // 8)


def listed(value):
    return value if isinstance(value, list) else []


def exist(part, chance):
    """Paths of what has to be there are those of what is there."""
    for name, there in (("kernel_image_path", KERNEL), ("initrd_path", IMAGES[0]), ("path_on_host", IMAGES[chance % len(IMAGES)])):
        if isinstance(part.get(name), str):
            part[name] = there


# Answers of each operation by their status, for the summary.
COUNTS = collections.Counter()


@schemathesis.hook
def after_call(context, case, response):
    COUNTS[case.method.upper(), case.operation.path, response.status_code] += 1


@atexit.register
def summary():
    with open(os.environ["TANDEM_API_COUNTS"], "w") as file:
        for (method, path, status), count in sorted(COUNTS.items()):
            print(method, path, status, count, file=file)
