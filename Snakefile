"""How each file is made: one rule per kind of job, then the views; reports and the site last (`noscratch commit`).

The plan (src/noscratch/plan.py) names the jobs; a job's only output is the record of its store entry, which one rename
publishes whole. So existence means complete and up to date (profiles/default: rerun-triggers mtime, and every input is
ancient), and nothing is re-run after `git clone`, `dvc pull` or `touch`. Views have no declared output: their rules
always run and are idempotent.
"""

import gc
import os
import shlex
import sys

# A graph of thousands of jobs is millions of objects, none of them garbage; to look through them again and again takes
# a quarter of the time. When jobs begin (onstart), the collector is back for what comes then.
gc.disable()

from noscratch import availability
from noscratch.cluster import require_slurm
from noscratch.device import gpu_count
from noscratch.locks import only_run
from noscratch.plan import KINDS, VIEWS, read_plan
from noscratch.recorded import is_recorded
from noscratch.store import Store, target

STORE, PLAN = Store(Path.cwd()), read_plan(Path.cwd())
NOSCRATCH = f"{shlex.quote(sys.executable)} -m noscratch"
# --jobs is given for a cluster, --cores for this host, neither where a graph is only drawn. Inside a cluster's job, where
# Snakemake runs once more, the profile's config alone tells.
ON_CLUSTER = workflow.resource_settings.nodes is not None or "cluster" in config
WORKS = ON_CLUSTER or workflow.resource_settings.cores is not None
DRAWN = not (WORKS or workflow.output_settings.dryrun)
MEMORY = 4000  # MB
GPUS = gpu_count() if PLAN.params.run.device != "cpu" else 0

if GPUS and not ON_CLUSTER and "gpu" not in workflow.global_resources:
    workflow.register_resource("gpu", GPUS)

if workflow.is_main_process and WORKS and not workflow.output_settings.dryrun:
    if config.get("cluster") == "slurm":  # profiles/slurm
        require_slurm()
    # One run at a time: the lock lives as long as this process. Sources come first (a cluster's nodes often have no
    # network), so that the graph holds only jobs that can run; what waits on a blocked source is shown in the views.
    LOCK = only_run(STORE.data)
    LOCK.__enter__()
    if "DVC_ROOT" not in os.environ:
        availability.refresh(STORE, PLAN)
    for _ in availability.bring(STORE, PLAN):
        pass
BLOCKED = availability.blocked(STORE, PLAN)
# What is there is up to date, with all that it needs there too: only a drawing shows it.
SHOWN = set()
for job in PLAN.jobs.values():
    lacking = not STORE.has(job) or not SHOWN.isdisjoint(job.needs.values())
    if job.address not in BLOCKED and (lacking or DRAWN):
        SHOWN.add(job.address)


onstart:
    gc.freeze()
    gc.enable()


def needs(wildcards):
    return [
        ancient(target(PLAN[address]))
        for address in PLAN[wildcards.address].needs.values()
    ]


def shown_in(*views):
    return [
        ancient(target(job))
        for view in views
        for job in PLAN.in_view(view)
        if job.address in SHOWN
    ]


def stop_after(wildcards, resources):
    """On a cluster a job saves and ends some minutes before its time is over, and is called again: Slurm's queue up
    by themselves, which is no failure and so costs no retry and asks for no more memory.
    """
    minutes = resources.get("runtime")
    again = " --requeue" if config.get("cluster") == "slurm" else ""
    return (
        f"--stop-after {max(60 * minutes - 300, 30 * minutes)}{again}"
        if minutes
        else ""
    )


def memory(wildcards, attempt):
    """A cluster ends a job that takes more than it asked for; handed in again, it asks for more."""
    return MEMORY * min(attempt, 4)


wildcard_constraints:
    address="[0-9a-f]{12}",
    label="[a-z0-9-]+",


localrules:
    all,
    raw,
    prepared,
    runs,


rule all:
    input:
        lambda _: shown_in(*VIEWS),
    shell:
        f"{NOSCRATCH} view raw prepared runs"


for kind in KINDS:

    rule:
        name:
            kind
        input:
            needs,
        output:
            "data/store/{address}-" + kind + "-{label}/record.json",
        log:
            "data/logs/{address}-" + kind + "-{label}.log",
        threads: PLAN.params.run.threads
        resources:
            # The host that hands jobs to a cluster often has no GPU of its own.
            gpu=(
                1
                if kind in VIEWS["runs"]
                and (GPUS or ON_CLUSTER and PLAN.params.run.device != "cpu")
                else 0
            ),
            # Functions only where they matter: Snakemake calls them for each of thousands of jobs.
            mem_mb=memory if ON_CLUSTER else MEMORY,
        params:
            stop_after=stop_after if ON_CLUSTER else "",
        shell:
            NOSCRATCH
            + " run {wildcards.address} {params.stop_after} > {log} 2>&1"
            + " || {{ code=$?; tail -n 20 {log} >&2; exit $code; }}"


rule raw:
    input:
        lambda _: shown_in("raw"),
    shell:
        f"{NOSCRATCH} view raw"


rule prepared:
    input:
        lambda _: shown_in("prepared"),
    shell:
        f"{NOSCRATCH} view prepared"


rule runs:
    input:
        lambda _: shown_in("runs"),
    shell:
        f"{NOSCRATCH} view runs"


# Reports, site and the record for DVC, unless that is of these very files.
onsuccess:
    if (
        "DVC_ROOT" not in os.environ
        and set(workflow.dag_settings.targets) <= {"all"}
        and not is_recorded(STORE.root)
    ):
        shell(f"{NOSCRATCH} commit")
