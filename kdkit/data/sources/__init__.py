"""Sources: modules that read images, labels and keys.

Where to look:
    create.py       `create_source`: a path, name or dataset -> a source; base.py is the interface of all sources
    listing.py      which files are images, which folders are classes, and the class order (`index_classes`)
    folder.py       image folders; zip.py, tar.py, webdataset.py read archives
    table.py        CSV and Parquet; columns.py chooses their columns
    hfds.py         Hugging Face datasets by name; hugging_face.py reads them, stream.py refuses streams
    mapped.py       any map-style dataset; array.py, arrays in memory; selection.py, a subset of another source,
                    classes.py, its images of some classes
    image.py        decodes one image; labels.py maps labels to class indices
"""
