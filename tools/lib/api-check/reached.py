"""Says what was answered, and fails where an operation has never been done: its answer was then not tried."""

import sys

import yaml

# Streams without an end, which schemathesis would wait for, and removals: they are tried, but whether one succeeds is up to the guest.
NOT_TRIED = {
    ("GET", "/events"),
    ("DELETE", "/drives/{drive_id}"),
    ("DELETE", "/network-interfaces/{iface_id}"),
}

document = yaml.safe_load(open(sys.argv[1]))
answers = {}
for name in sys.argv[2:]:
    for line in open(name):
        method, path, status, count = line.split()
        answers.setdefault((method, path), {}).setdefault(status, 0)
        answers[method, path][status] += int(count)

never = []
for path, item in document["paths"].items():
    for method, operation in item.items():
        key = (method.upper(), path)
        if method == "parameters" or key in NOT_TRIED:
            continue
        for status in operation["responses"]:
            if status.startswith("2") and status not in answers.get(key, {}):
                never.append(key)

total = {}
for statuses in answers.values():
    for status, count in statuses.items():
        total[status] = total.get(status, 0) + count
print("answers by status:", ", ".join(f"{count} of {status}" for status, count in sorted(total.items())))
for method, path in never:
    print(f"never done: {method} {path}")
sys.exit(bool(never))
