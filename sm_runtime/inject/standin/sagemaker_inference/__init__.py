"""What SageMaker's inference toolkit offers to inference scripts, where it is not installed.

Found only where no package of this name is (``serving/handlers.py``). Nothing here unpickles.
"""
