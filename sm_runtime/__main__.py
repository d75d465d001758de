"""The commands ``train`` and ``sm-runtime``; the only place that reads os.environ."""

import os
import sys

from sm_runtime import isolation

if __name__ == "__main__":
    # Before any other import, `__future__` included: what is found now may be the job's.
    isolation.enter(os.environ)

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

from sm_runtime import __version__
from sm_runtime.code import entry
from sm_runtime.contract import environment
from sm_runtime.job.secrets import Mask
from sm_runtime.processes import shortage
from sm_runtime.processes.relay import Sink, log_to, open_sinks

if TYPE_CHECKING:
    from argparse import ArgumentParser

DESCRIPTION = """\
Runs a training script the way SageMaker's training toolkit does: configuration from
/opt/ml/input/config, SM_* variables, hyperparameters as arguments, artifacts from /opt/ml/model.
"""
TRAIN = """\
Runs the job that the files below /opt/ml and the environment describe, as PID 1 or not.

files:
  /opt/ml/input/config/   hyperparameters.json, inputdataconfig.json, resourceconfig.json: what a
                          platform writes; all may be absent. job.json: a CreateTrainingJob
                          request, which makes the job self-managed: the runtime saves artifacts,
                          and writes what is absent of the other files for scripts that open them.
  /opt/ml/input/data/     a folder for each channel
  /opt/ml/code/           the user's code and its requirements.txt
  /opt/ml/model/          what the script leaves here is the model
  /opt/ml/output/         success or failure; data/ for other output

environment:
  SAGEMAKER_PROGRAM           the entry point: train.py, pkg.module, run.sh (or the hyperparameter
                              sagemaker_program)
  SAGEMAKER_SUBMIT_DIRECTORY  where the code is, if not in /opt/ml/code: a folder, an archive, or
                              an s3:// URI of one (which needs boto3)
  SAGEMAKER_BASE_DIR          used in place of /opt/ml
  SM_RUNTIME_JOB              a path or URI of job.json, or its text
  SM_RUNTIME_CLUSTER_SECRET   the same on all hosts of a distributed job, by which they know each
                              other (or SM_RUNTIME_CLUSTER_SECRET_FILE, a file that holds it)
  SM_RUNTIME_*                options: see docs/options.md

exit status:
  0      the script succeeded and all was saved
  N      the script ended with N; 128+S: signal S ended it; 143: it ignored a stop and was killed
  1      configuration, code, requirements or artifacts are at fault
The reason is the last error in the log and the first line of /opt/ml/output/failure.

signals:
  TERM, INT, HUP, QUIT  passed on to the script, which has 110 s (90 s where the runtime saves the
                        artifacts) before it is killed
  USR1                  dumps the stacks of the script's Python processes into the log
"""
ENV = """\
Prints the environment variables and the arguments that the job would give to its script, and runs
nothing. A shell can read the default output: the arguments become $1, $2, ...
"""
CHECK = """\
Validates the configuration, the code and the channels, and prints every problem, a line each; or,
with --model, lists the models, versions and signatures of a folder, and what is wrong with it.
Runs and changes nothing. Exit status: 0 no problem, 1 some.
"""
SERVE = """\
Answers requests on port 8080 with the model in /opt/ml/model: a SavedModel, a Keras file, or what
the code in /opt/ml/model/code (inference.py) loads.

requests:
  GET /ping             200 once the model is loaded and warm
  POST /invocations     JSON, JSON Lines, CSV, npy; what the code's handlers take
  /v1/models/<name>...  TensorFlow Serving's REST interface, on port 8501, too
  GET /metrics          counts, in Prometheus' format

environment:
  SAGEMAKER_BASE_DIR               used in place of /opt/ml
  SAGEMAKER_BIND_TO_PORT           the port (8080)
  SAGEMAKER_MODEL_SERVER_WORKERS   processes that hold the model (1)
  SAGEMAKER_MULTI_MODEL            true: models are loaded and unloaded by request
  SAGEMAKER_TFS_ENABLE_BATCHING    true: requests share calls of the model
  All variables are in docs/serving.md.

exit status:
  0      a stop was asked for, and all requests were answered
  1      the model, its code or the configuration is at fault: the last line of the log says why
"""
EXPORT = """\
Prints manifests that run a CreateTrainingJob request on Kubernetes, for `kubectl apply -f -`: an
Indexed Job, or Kubeflow Trainer's TrainJob, with all that it needs. Talks to no cluster. YAML with
PyYAML (the extra `export`), JSON without. Exit status: 0 printed, 1 the request is at fault.
"""
REPORT = """\
Writes one HTML file, without outside parts, about the job that has ended below BASE: its phases,
metrics, host, failure and configuration. Needs pygal. Exit status: 0 written, 1 not.
"""


def main() -> int:
    """Run the command ``sm-runtime`` with the arguments of this process.

    Platforms start an image with the single argument ``train``: an image whose entry point is
    ``train``, or ``sm-runtime train``, gets the word twice.
    """
    entry.add_user_packages(os.environ)
    words = sys.argv[1:]
    if words[:2] == ["train", "train"]:
        del words[0]
    if words == ["train"]:
        _train()
    if words[:2] == ["serve", "serve"]:
        del words[0]
    import argparse

    from sm_runtime.export import options as export_options

    parser = _parser(argparse.ArgumentParser, "sm-runtime", DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"sm-runtime {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add = commands.add_parser
    _parser(add, "train", TRAIN, help="run the job (also the command `train`)")
    _parser(add, "serve", SERVE, help="answer requests with a model (also the command `serve`)")
    env = _parser(add, "env", ENV, help="print what the script would get; run nothing")
    env.add_argument(
        "--json",
        action="store_true",
        help='one object: {"environment": {}, "arguments": [], "command": [] or null}',
    )
    env.add_argument(
        "--launch",
        action="store_true",
        help="print instead what each host would start, with the origin of each option",
    )
    env.add_argument("--show-secrets", action="store_true", help="print secrets instead of ***")
    look = _parser(add, "check", CHECK, help="list every problem of the job; run nothing")
    look.add_argument(
        "--model",
        nargs="?",
        const="",
        metavar="FOLDER",
        help="list instead what `serve` would serve of a model folder (/opt/ml/model)",
    )
    report = _parser(add, "report", REPORT, help="write a job that has ended as one HTML file")
    report.add_argument("base", nargs="?", metavar="BASE", help="the job's folder (/opt/ml)")
    report.add_argument("-o", "--output", metavar="FILE", help="where to write it")
    export_options.add(_parser(add, "export", EXPORT, help="print a request as manifests"))
    parsed = parser.parse_args(words)
    if parsed.command == "train":
        _train()
    mask = Mask()
    if parsed.command == "serve":
        from sm_runtime.processes import init
        from sm_runtime.serving.serve import serve

        init.step_aside()
        log_to(Sink(2), mask)
        mask.learn(environment.secrets(None, os.environ))
        return serve(os.environ)
    import signal

    from sm_runtime import check
    from sm_runtime.processes.stop import STOPPING

    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)  # see isolation.enter
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `sm-runtime env | head` is no error
    log_to(Sink(2), mask)
    if parsed.command == "export":
        from sm_runtime.export.command import export

        return export(parsed, mask)
    if parsed.command == "check" and parsed.model is not None:
        return check.model(os.environ, parsed.model)
    if parsed.command == "check":
        return check.check(os.environ, mask)
    if parsed.command == "report":
        return check.report(os.environ, parsed.base, parsed.output)
    if parsed.launch:
        return check.launch(os.environ, mask, secrets=parsed.show_secrets)
    return check.show(os.environ, mask, as_json=parsed.json, secrets=parsed.show_secrets)


def _parser(
    make: "Callable[..., ArgumentParser]", name: str, text: str, **more: str
) -> "ArgumentParser":
    from argparse import RawDescriptionHelpFormatter

    kind = RawDescriptionHelpFormatter
    return make(name, description=text, formatter_class=kind, allow_abbrev=False, **more)


def _train() -> NoReturn:
    from sm_runtime.processes.supervisor import Supervisor
    from sm_runtime.run import train

    with suppress(OSError), open("/proc/self/comm", "w") as file:
        file.write("train")  # in ps and to pkill, where it would be Python's own name
    out, err = open_sinks()
    mask = Mask()
    log_to(err, mask)
    status = 1
    try:
        with Supervisor(out, err) as supervisor:
            status = train(dict(os.environ), supervisor, mask)
    except BaseException as error:
        logger = logging.getLogger("sm_runtime")
        if reason := shortage.reason(error):
            logger.error("%s", reason)
        else:
            logger.exception("the runtime itself failed")
    finally:
        # All is written and closed: tearing the interpreter down would only take its 7 ms.
        os._exit(status)


if __name__ == "__main__":
    sys.exit(main())
