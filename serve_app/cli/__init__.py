"""The command line, `llm-backend`.

Heavy modules are imported only by the commands that need them: `--help` and completion are fast.

start.py       `start`, `stop`
status.py      `health`, `status`, `models`, `events`
switch.py      `switch`, `unload`, `lease`
chat.py        `chat`
logs.py        `logs`
cache.py       `cache stats`, `cache clear`
plan.py        `plan`
pull.py        `pull`
add.py         `add`
fitting.py     fits the model that `add` drafts to a card
model_file.py  drafts a model's file from what its checkpoint says of itself
doctor.py      `doctor`
bench.py       `bench`
launch.py      `launch`, `config`
tools.py       how programs of other makers reach this backend: pure
connection.py  reaches a server; makes one line and an exit code of each error
tables.py      values as lines of text
progress.py    a switch as a bar
log_times.py   reads the time of a log line
"""

import typer

from serve_app.cli import (
    add,
    bench,
    cache,
    chat,
    doctor,
    launch,
    logs,
    plan,
    pull,
    start,
    status,
    switch,
)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Three models on one GPU: start the server, see and switch the resident model, chat.",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 3 no server answers.",
)
start.register(app)
status.register(app)
switch.register(app)
chat.register(app)
logs.register(app)
launch.register(app)
cache.register(app)
for command in (plan.plan, doctor.doctor, pull.pull, add.add, bench.bench):
    app.command()(command)


def main() -> None:
    app()
