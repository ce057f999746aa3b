"""How long the control plane may reject this data plane (seconds) before that is permanent.

A token file may be on its way to a new data plane. A control plane that has served this one before is more likely to be
in trouble itself, for example without its signing keys.
"""

GRACE_PERIOD = 60.0
ESTABLISHED_GRACE_PERIOD = 600.0
