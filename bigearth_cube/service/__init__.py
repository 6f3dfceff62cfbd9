"""``bec serve``: a STAC API over cubes, with pictures, pixels and look-alikes of each patch.

``app.create_app`` makes the application. What it answers from stands in the rooms below it,
none of which knows HTTP: ``shelf`` holds the cubes and finds, ``pages`` cuts answers into pages,
``render`` writes items as JSON and as tables, ``tally`` counts, ``pictures`` reads pixels and
draws them, ``alike`` finds look-alikes.
"""
