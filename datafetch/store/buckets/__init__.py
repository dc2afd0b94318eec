"""Outputs in buckets of object stores: a local working copy of one, and how the bucket keeps up with it.

A run works on a local folder, its *working copy*, in the same way as on any output. What it publishes there is uploaded
and then recorded in the *commit log*, which decides what the output holds. See ``working_copy``.
"""
