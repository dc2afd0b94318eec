"""The pool of workers: the codec processes, and how images reach them and come back.

The parent runs one ``Transcoder`` (pool.py). It starts workers through a fork server (spawner.py in the parent,
forkserver.py in the server), and keeps one ``WorkerHandle`` for each (worker_handle.py). A worker (worker.py) is
sandboxed (sandbox.py), receives batches of images in shared memory (shared_buffer.py), and answers over a socket
(protocol.py). Bodies that crashed a worker are kept for inspection (quarantine.py).
"""
