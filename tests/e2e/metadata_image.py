# SPDX-License-Identifier: GPL-2.0-or-later
"""A pool's metadata as a byte array: find blocks by what they are for, change them, seal them again.

On-disk layout: include/thinpoold/disk-format.h.  Checksums are those of tests/tools/thinmeta.py,
which shares no code with the daemon.
"""
import pathlib
import struct
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / 'tests/tools'))
import thinmeta  # noqa: E402

BLOCK = 4096
XOR = {'superblock': thinmeta.XOR_SB, 'node': thinmeta.XOR_NODE, 'bitmap': thinmeta.XOR_BITMAP,
       'index': thinmeta.XOR_INDEX}

# Offsets in the superblock.
SB_FLAGS, SB_BLOCKNR, SB_MAGIC, SB_VERSION, SB_TIME, SB_HELD_ROOT = 4, 8, 32, 40, 44, 56
SB_DATA_MAP, SB_METADATA_MAP = 64, 192  # nr_blocks, nr_allocated, bitmap_root, ref_count_root
SB_MAPPING_ROOT, SB_DETAILS_ROOT, SB_DATA_BLOCK_SIZE, SB_METADATA_BLOCK_SIZE = 320, 328, 336, 340
SB_COMPAT, SB_COMPAT_RO, SB_INCOMPAT = 352, 356, 360
# Offsets in a node.
NODE_FLAGS, NODE_BLOCKNR, NODE_NR, NODE_MAX, NODE_VALUE_SIZE, NODE_KEYS = 4, 8, 16, 20, 24, 32


class Image:
    """Metadata in memory.  where[NAME] is a block; NAME as in find()."""

    def __init__(self, path):
        self.path = path
        self.data = bytearray(pathlib.Path(path).read_bytes())
        self.where, self.kind = {}, {}
        self.find()

    def save(self, path=None):
        pathlib.Path(path or self.path).write_bytes(self.data)

    # ---- fields ----

    def u32(self, block, offset):
        return struct.unpack_from('<I', self.data, block * BLOCK + offset)[0]

    def u64(self, block, offset):
        return struct.unpack_from('<Q', self.data, block * BLOCK + offset)[0]

    def set32(self, block, offset, value):
        struct.pack_into('<I', self.data, block * BLOCK + offset, value)

    def set64(self, block, offset, value):
        struct.pack_into('<Q', self.data, block * BLOCK + offset, value)

    def seal(self, block):
        """Make the checksum right for what the block holds now."""
        xor = XOR[self.kind[block]]
        content = bytes(self.data[block * BLOCK:(block + 1) * BLOCK])
        self.set32(block, 0, thinmeta.csum(content, xor))

    def value_offset(self, block, i):
        return NODE_KEYS + 8 * self.u32(block, NODE_MAX) + self.u32(block, NODE_VALUE_SIZE) * i

    def keys(self, block):
        return [self.u64(block, NODE_KEYS + 8 * i) for i in range(self.u32(block, NODE_NR))]

    def values(self, block):
        return [self.u64(block, self.value_offset(block, i))
                for i in range(self.u32(block, NODE_NR))]

    def is_leaf(self, block):
        return self.u32(block, NODE_FLAGS) == 2

    # ---- what is where ----

    def leaf_of(self, root):
        while not self.is_leaf(root):
            self.kind[root] = 'node'
            root = self.values(root)[0]
        self.kind[root] = 'node'
        return root

    def find(self):
        """superblock, top_leaf, details_leaf, mapping_node and mapping_leaf (of the first device
        whose tree has both; its id is .device), data_index_leaf, data_bitmap, data_counts_leaf,
        metadata_index, metadata_bitmap, metadata_counts_leaf."""
        w = self.where
        w['superblock'] = 0
        self.kind[0] = 'superblock'
        w['top_leaf'] = self.leaf_of(self.u64(0, SB_MAPPING_ROOT))
        w['details_leaf'] = self.leaf_of(self.u64(0, SB_DETAILS_ROOT))
        for device, root in zip(self.keys(w['top_leaf']), self.values(w['top_leaf'])):
            if not self.is_leaf(root):
                self.device = device
                w['mapping_node'], w['mapping_leaf'] = root, self.leaf_of(root)
                break
        w['data_index_leaf'] = self.leaf_of(self.u64(0, SB_DATA_MAP + 16))
        w['data_bitmap'] = self.values(w['data_index_leaf'])[0]
        w['data_counts_leaf'] = self.leaf_of(self.u64(0, SB_DATA_MAP + 24))
        w['metadata_index'] = self.u64(0, SB_METADATA_MAP + 16)
        w['metadata_bitmap'] = self.u64(w['metadata_index'], 16)
        w['metadata_counts_leaf'] = self.leaf_of(self.u64(0, SB_METADATA_MAP + 24))
        self.kind[w['data_bitmap']] = self.kind[w['metadata_bitmap']] = 'bitmap'
        self.kind[w['metadata_index']] = 'index'

    def get_count(self, bitmap, i):
        """The two bits of entry i; the even bit is the high one."""
        byte = self.data[bitmap * BLOCK + 16 + i // 4] >> i % 4 * 2
        return (byte & 1) << 1 | byte >> 1 & 1

    def set_count(self, bitmap, i, count):
        at = bitmap * BLOCK + 16 + i // 4
        bits = (count >> 1 | (count & 1) << 1) << i % 4 * 2
        self.data[at] = self.data[at] & ~(3 << i % 4 * 2) | bits
