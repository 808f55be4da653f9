"""Small data sets of the literature that come with the package."""

from importlib import resources

from ppl_vae.data.tables import Table, read_table

__all__ = ["faithful", "galaxies"]


def faithful() -> Table:
    """Old Faithful: how long 272 eruptions of the geyser lasted, and how long one waited for the next.

    Returns
    -------
    Table
        values [272, 2]: `eruptions` (minutes), `waiting` (minutes).

    References
    ----------
    Azzalini, A. and Bowman, A. W. (1990). A look at some data on the Old Faithful geyser. Applied Statistics 39,
    357-365. The 272 rows are those of the data set `faithful` of R.

    Examples
    --------
    >>> table = faithful()
    >>> len(table), table.columns
    (272, ('eruptions', 'waiting'))
    """
    return _shipped("faithful.csv", "Old Faithful (Azzalini and Bowman, 1990)")


def galaxies() -> Table:
    """Galaxies: how fast 82 of them, in the region of the Corona Borealis, move away from us.

    Galaxies in one cluster move at about one velocity, so groups of velocities are clusters, and gaps are voids.

    Returns
    -------
    Table
        values [82, 1]: `velocity` (1,000 km/s), in increasing order.

    Notes
    -----
    The 78th value is 26.960, as published. The data set `galaxies` of R's MASS has 26.690 there, and its help page
    calls that a typing error. An 83rd galaxy of the survey, at 5.607, is left out, as in Roeder (1990).

    References
    ----------
    Postman, M., Huchra, J. P. and Geller, M. J. (1986). Probes of large-scale structures in the Corona Borealis
    region. Astronomical Journal 92, 1238-1247.
    Roeder, K. (1990). Density estimation with confidence sets exemplified by superclusters and voids in the
    galaxies. Journal of the American Statistical Association 85, 617-624.

    Examples
    --------
    >>> table = galaxies()
    >>> len(table), table.columns, round(table.values.mean().item(), 3)
    (82, ('velocity',), 20.831)
    """
    return _shipped("galaxies.csv", "Galaxies (Roeder, 1990)")


def _shipped(file: str, source: str) -> Table:
    with resources.as_file(resources.files("ppl_vae.data") / file) as path:
        table = read_table(path)
    return Table(table.values, table.columns, source, table.missing_rows)
