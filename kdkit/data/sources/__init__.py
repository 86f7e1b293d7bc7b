"""Sources: modules that read images, labels and keys.

Where to look:
    create.py       `create_source`: a path, name or dataset -> a source; base.py is the interface of all sources
    listing.py      which files are images; class_folders.py tells class folders from splits and copies of data
    class_order.py  the order of classes
    left_out.py     what is not listed: counted, refused or skipped; checked.py and repeatable.py check a whole source
    folder.py       image folders; zip.py and tar.py read archives
    member.py       a member of a tar; tar_listing.py lists them, tar_index.py keeps the list of a large tar
    webdataset.py   WebDataset shards; shard_names.py tells the names of shards from those of classes
    table.py        CSV and Parquet; table_file.py reads them, columns.py chooses their columns
    hfds.py         Hugging Face datasets by name; hugging_face.py reads them, stream.py refuses streams
    multi_label.py  several labels per image, in columns of a table or given as vectors
    mapped.py       any map-style dataset; known.py has its keys and labels; array.py, arrays in memory
    content.py      the files of the samples, before decoding
    image.py        decodes one image; labels.py maps labels to class indices
    joined.py       several sources as one
    selection.py    a subset of a source, or its images without labels; classes.py, its images of some classes
"""
