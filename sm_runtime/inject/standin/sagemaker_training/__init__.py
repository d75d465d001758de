"""What SageMaker's training toolkit offers to scripts and framework hooks, for jobs without it.

Found only where no package of this name is (``inject/sitecustomize.py``). The job is described by
the variables that the runtime has given to the process; nothing is fetched, probed or created by
an import. Any Python from 3.8 on can be the user's: this is plain code without dependencies.
"""
