package embedded

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"io"
	"math"
)

// The layout of a bbolt file (version 2), as go.etcd.io/bbolt/internal/common declares it: pages of a
// fixed size in the byte order of the machine, a B+tree of buckets. bbolt's own check maps the file into
// memory and trusts it, so that some flipped bits end the process; this one reads it with every offset
// checked, before bbolt sees it.
const (
	pageHeaderSize = 16 // id 8, flags 2, count 2, overflow 4
	branchElemSize = 16 // pos 4, key size 4, page id 8
	leafElemSize   = 16 // flags 4, pos 4, key size 4, value size 4
	bucketSize     = 16 // root page 8, sequence 8; a root page of 0 means that the bucket's one page follows
	metaSize       = 64

	flagBranch   = 0x01
	flagLeaf     = 0x02
	flagMeta     = 0x04
	flagFreelist = 0x10

	bucketElem = 1 // flag of a leaf element that holds a bucket

	boltMagic   = 0xED0CDAED
	boltVersion = 2

	maxPage  = 64 << 10
	maxDepth = 32
)

var order = binary.NativeEndian

// checker walks one file.
type checker struct {
	r        io.ReaderAt
	pageSize int64
	pages    uint64            // page ids in use are below
	used     map[uint64]string // page id → what it is part of
}

// record is one leaf entry that the walk met.
type record func(key, value []byte) error

// check reads the whole file and returns its summary, or says what is wrong and where. Each record is
// passed to visit, if given.
func check(r io.ReaderAt, size int64, visit func(key string, revision uint64, value []byte)) (head, error) {
	meta, err := readMeta(r, size)
	if err != nil {
		return head{}, err
	}
	c := &checker{r: r, pageSize: meta.pageSize, pages: meta.pages, used: map[uint64]string{0: "meta", 1: "meta"}}
	if int64(c.pages)*c.pageSize > size {
		return head{}, fmt.Errorf("the file has %d bytes, its %d pages need %d", size, c.pages, int64(c.pages)*c.pageSize)
	}
	buckets := map[string][]byte{}
	err = c.tree("root", meta.root, bucketElem, func(key, value []byte) error {
		buckets[string(key)] = bytes.Clone(value)
		return nil
	})
	if err != nil {
		return head{}, err
	}
	if len(buckets) != 2 {
		return head{}, fmt.Errorf("the file has %d buckets instead of 2", len(buckets))
	}
	var want, got head
	err = c.bucket(bucketMeta, buckets, func(key, value []byte) error {
		if string(key) != keyHead {
			return fmt.Errorf("unknown key %q", key)
		}
		want, err = decodeHead(value)
		return err
	})
	if err != nil {
		return head{}, err
	}
	err = c.bucket(bucketKV, buckets, func(key, raw []byte) error {
		revision, sum, value, err := decodeRecord(key, raw)
		if err != nil {
			return fmt.Errorf("key %q: %w", key, err)
		}
		got.add(sum)
		got.Revision = max(got.Revision, revision)
		if visit != nil {
			visit(string(key), revision, value)
		}
		return nil
	})
	if err != nil {
		return head{}, err
	}
	if got.Count != want.Count || got.Sum != want.Sum || got.Revision > want.Revision {
		return head{}, fmt.Errorf("the records (%d, revision %d) are not those of the summary (%d, revision %d)",
			got.Count, got.Revision, want.Count, want.Revision)
	}
	if want.Commit != meta.txid {
		return head{}, fmt.Errorf("the records are those of commit %d, the last one was %d", want.Commit, meta.txid)
	}
	return want, c.freelist(meta.freelist)
}

type meta struct {
	pageSize int64
	root     uint64
	freelist uint64
	pages    uint64
	txid     uint64
}

// readMeta returns the newer of the two meta pages. bbolt would fall back to the older one when the newer
// is damaged, and so lose the last transaction without a word; a meta fits a disk sector, is written in
// one piece and therefore is never torn by a crash, so that a damaged one is always corruption.
func readMeta(r io.ReaderAt, size int64) (meta, error) {
	first, err := parseMeta(r, 0, 0)
	if err != nil {
		return meta{}, err
	}
	second, err := parseMeta(r, first.pageSize, 1)
	if err != nil {
		return meta{}, err
	}
	if first.pageSize != second.pageSize || size%first.pageSize != 0 {
		return meta{}, fmt.Errorf("page sizes %d and %d do not fit a file of %d bytes", first.pageSize, second.pageSize, size)
	}
	if second.txid > first.txid {
		return second, nil
	}
	return first, nil
}

func parseMeta(r io.ReaderAt, offset int64, id uint64) (meta, error) {
	page := make([]byte, pageHeaderSize+metaSize)
	if _, err := r.ReadAt(page, offset); err != nil {
		return meta{}, fmt.Errorf("meta page %d: %w", id, err)
	}
	b := page[pageHeaderSize:]
	sum := fnv.New64a()
	sum.Write(b[:metaSize-8])
	m := meta{
		pageSize: int64(order.Uint32(b[8:])),
		root:     order.Uint64(b[16:]),
		freelist: order.Uint64(b[32:]),
		pages:    order.Uint64(b[40:]),
		txid:     order.Uint64(b[48:]),
	}
	switch {
	case order.Uint64(page) != id || order.Uint16(page[8:]) != flagMeta:
		return meta{}, fmt.Errorf("page %d is not a meta page", id)
	case order.Uint32(b) != boltMagic || order.Uint32(b[4:]) != boltVersion:
		return meta{}, fmt.Errorf("meta page %d: no bbolt file of version %d", id, boltVersion)
	case order.Uint64(b[metaSize-8:]) != sum.Sum64():
		return meta{}, fmt.Errorf("meta page %d does not match its checksum", id)
	case m.pageSize < 512 || m.pageSize > maxPage || m.pages > math.MaxInt64/maxPage:
		return meta{}, fmt.Errorf("meta page %d: impossible sizes", id)
	}
	return m, nil
}

// page is a page with its overflow, or the page of an inline bucket.
type page struct {
	id    uint64
	flags uint16
	count int
	data  []byte // with the header
}

func parsePage(data []byte) page {
	return page{id: order.Uint64(data), flags: order.Uint16(data[8:]), count: int(order.Uint16(data[10:])), data: data}
}

// load reads page id and marks it as used by owner.
func (c *checker) load(id uint64, owner string) (page, error) {
	if id < 2 || id >= c.pages {
		return page{}, fmt.Errorf("%s: page %d is out of the file's %d", owner, id, c.pages)
	}
	header := make([]byte, pageHeaderSize)
	if _, err := c.r.ReadAt(header, int64(id)*c.pageSize); err != nil {
		return page{}, fmt.Errorf("%s: page %d: %w", owner, id, err)
	}
	more := uint64(order.Uint32(header[12:]))
	if more >= c.pages-id {
		return page{}, fmt.Errorf("%s: page %d claims %d more, out of the file's %d", owner, id, more, c.pages)
	}
	for p := id; p <= id+more; p++ {
		if other, taken := c.used[p]; taken {
			return page{}, fmt.Errorf("%s: page %d is part of %s too", owner, p, other)
		}
		c.used[p] = owner
	}
	data := make([]byte, int64(more+1)*c.pageSize)
	if _, err := c.r.ReadAt(data, int64(id)*c.pageSize); err != nil {
		return page{}, fmt.Errorf("%s: page %d: %w", owner, id, err)
	}
	p := parsePage(data)
	if p.id != id {
		return page{}, fmt.Errorf("%s: page %d says that it is page %d", owner, id, p.id)
	}
	return p, nil
}

// span returns n bytes at pos, counted from the start of the element at elem.
func (p page) span(elem int, pos, n uint32) ([]byte, error) {
	start := uint64(elem) + uint64(pos)
	if start+uint64(n) > uint64(len(p.data)) {
		return nil, fmt.Errorf("page %d: an element reaches out of it", p.id)
	}
	return p.data[start : start+uint64(n)], nil
}
