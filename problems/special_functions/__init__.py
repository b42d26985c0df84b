"""Special functions with derivatives to second order that torch lacks, for anybody.

Distribution functions with derivatives in every argument, accurate far into the tails. A sample
``z`` of a distribution with the CDF ``F(z; phi)`` and the density ``f(z; phi)`` moves with the
parameter by ``dz/dphi = -(dF/dphi) / f``. Near 0 and near 1, ``F`` cannot be differenced; here the
quotient itself is one scaled integral without cancellation. No distribution is known here.
"""
