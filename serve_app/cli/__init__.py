"""The command line, `llm-backend`.

Nothing heavy is imported before a command needs it: `--help` and completion answer at once.
"""

import typer

from serve_app.bench_command import bench
from serve_app.cli import asking, cache, chat, logs, residency, start
from serve_app.doctor_command import doctor
from serve_app.plan_command import plan
from serve_app.pull_command import pull

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Three models, one GPU: start the server, see and switch what is resident, talk to it.",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 3 nothing answers.",
)
start.register(app)
asking.register(app)
residency.register(app)
chat.register(app)
logs.register(app)
cache.register(app)
for command in (plan, doctor, pull, bench):
    app.command()(command)


def main() -> None:
    """Entry point."""
    app()
