"""Readers of the data sets that people have; each format is a file, and imports what it needs when
it is read. All end in :class:`fastgen.data.formats.source.Source`."""
