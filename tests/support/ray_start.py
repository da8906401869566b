"""`ray start` of a cluster whose workers are the program at the path that comes first among the arguments."""

import sys
from functools import partialmethod

if __name__ == "__main__":
    from ray._private.node import Node
    from ray._private.parameter import RayParams
    from ray.scripts.scripts import main

    _, path, *words = sys.argv
    RayParams.__init__ = partialmethod(RayParams.__init__, worker_path=path)
    Node.start_api_server = lambda node, **options: None  # as in workers.py
    sys.argv = ["ray", *words]
    main()
