"""``agm submit VERB ARGS``: the verb as a Ray job, ``ray job submit --working-dir . -- python -m jobs.VERB ARGS``."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs import entry, local
from pipeline.home import Home, submitter_home

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
NOT_UPLOADED = [".git", ".venv", ".agm", "dist", "build", "**/__pycache__"]


@dataclass(frozen=True)
class JobSpec:
    """What is submitted, as plain data: Ray is asked later and elsewhere."""

    entrypoint: str
    runtime_env: dict[str, Any] = field(default_factory=dict)


def job_spec(verb: str, arguments: list[str], home: Home, working_dir: Path) -> JobSpec:
    """The job for ``verb``; the home goes along as an absolute path that every node of the cluster has to see."""
    return JobSpec(
        entrypoint=shlex.join(["python", "-m", f"jobs.{verb}", *arguments]),
        runtime_env={
            "working_dir": str(working_dir),
            "excludes": NOT_UPLOADED,
            "env_vars": local.worker_env(home),
        },
    )


def command(
    verb: Annotated[str, typer.Argument(help="update, tune, evaluate, pretrain, status, ...")],
    arguments: Annotated[list[str] | None, typer.Argument(help="everything after the verb is the verb's own")] = None,
    address: Annotated[
        str, typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="the cluster's job server")
    ] = DEFAULT_ADDRESS,
    working_dir: Annotated[Path, typer.Option(exists=True, file_okay=False, help="what is sent along")] = Path(),
    wait: Annotated[bool, typer.Option(help="follow the job's output and end with its exit code")] = True,
) -> None:
    """Run a verb on a Ray cluster, with the same arguments as here. Options of submit itself stand before the verb.

    AGM_HOME is sent as an absolute path: set it to a folder that all nodes of the cluster share.

    Example: `AGM_HOME=/mnt/agm/home agm submit update --recipe examples/cluster.yaml`
    """
    from jobs.cli import VERBS

    if verb not in VERBS or verb == "submit":
        raise entry.UserError(f"{verb!r} is not a verb that can be submitted; use one of {', '.join(sorted(VERBS))}")
    spec = job_spec(verb, arguments or [], submitter_home(), working_dir.resolve())
    client = _client(address)
    submission_id = client.submit_job(entrypoint=spec.entrypoint, runtime_env=spec.runtime_env)
    entry.console.print(f"[dim]{submission_id}: {spec.entrypoint}[/dim]", soft_wrap=True)
    if wait:
        sys.exit(_follow(client, submission_id))


command.typer_settings = {  # type: ignore[attr-defined]
    "context_settings": {"ignore_unknown_options": True, "allow_interspersed_args": False}
}


def _client(address: str) -> Any:
    for name, value in local.TELEMETRY_OFF.items():
        os.environ.setdefault(name, value)
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except ConnectionError:
        raise entry.UserError(
            f"no job server at {address}: start a cluster (ray start --head, or ray up cluster.yaml), "
            "or name it with --address"
        ) from None


def _follow(client: Any, submission_id: str) -> int:
    """Print the job's output as it comes; the exit code of its driver, or 1 where it never ran."""
    from ray.job_submission import JobStatus

    asyncio.run(_print_logs(client, submission_id))
    job = client.get_job_info(submission_id)
    if job.status == JobStatus.SUCCEEDED:
        return 0
    entry.console.print(f"[red]{submission_id}: {job.status.value}[/red] {job.message or ''}", soft_wrap=True)
    return job.driver_exit_code or 1


async def _print_logs(client: Any, submission_id: str) -> None:
    async for lines in client.tail_job_logs(submission_id):
        sys.stdout.write(lines)
        sys.stdout.flush()


main = entry.main(command)

if __name__ == "__main__":
    main()
