"""weft's all-reduce inside other engines: entry points that do nothing unless they are asked.

``WEFT_ALL_REDUCE=1`` turns them on (:mod:`weft.plugins.switch`). Each engine has one module;
what they share is :mod:`weft.plugins.reducer`; :mod:`weft.plugins.entry` is what engines call.
"""
