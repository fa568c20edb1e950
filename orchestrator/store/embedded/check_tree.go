package embedded

import (
	"bytes"
	"fmt"
)

// walk is the state of going through one bucket in key order.
type walk struct {
	owner string
	flags uint32 // that every leaf element must have
	last  []byte // key met last; nil at the start
	visit record
}

// bucket walks the named one of buckets, which may be stored inline.
func (c *checker) bucket(name string, buckets map[string][]byte, visit record) error {
	value, ok := buckets[name]
	if !ok || len(value) < bucketSize {
		return fmt.Errorf("bucket %q is missing", name)
	}
	if root := order.Uint64(value); root != 0 {
		return c.tree(name, root, 0, visit)
	}
	inline := value[bucketSize:]
	if len(inline) < pageHeaderSize {
		return fmt.Errorf("bucket %q is cut off", name)
	}
	w := &walk{owner: name, visit: visit}
	return w.leaf(parsePage(inline), nil, nil)
}

// tree walks the tree at page root; every leaf element must have exactly flags.
func (c *checker) tree(owner string, root uint64, flags uint32, visit record) error {
	return c.descend(&walk{owner: owner, flags: flags, visit: visit}, root, nil, nil, 0)
}

// descend walks the subtree at page id, whose keys must be from low up to, but not including, high. A nil
// bound is none.
func (c *checker) descend(w *walk, id uint64, low, high []byte, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("%s: the tree is deeper than %d", w.owner, maxDepth)
	}
	p, err := c.load(id, w.owner)
	if err != nil {
		return err
	}
	if p.flags != flagBranch {
		return w.leaf(p, low, high)
	}
	if p.count == 0 {
		return fmt.Errorf("%s: branch page %d is empty", w.owner, id)
	}
	children, err := w.branch(p)
	if err != nil {
		return err
	}
	for i, child := range children {
		next := high
		if i+1 < len(children) {
			next = children[i+1].key
		}
		if !within(child.key, low, high) || next != nil && bytes.Compare(child.key, next) >= 0 {
			return fmt.Errorf("%s: branch page %d is out of order", w.owner, id)
		}
		if err := c.descend(w, child.page, child.key, next, depth+1); err != nil {
			return err
		}
	}
	return nil
}

type child struct {
	key  []byte
	page uint64
}

func (w *walk) branch(p page) ([]child, error) {
	out := make([]child, p.count)
	for i := range out {
		at := pageHeaderSize + i*branchElemSize
		elem, err := p.span(at, 0, branchElemSize)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", w.owner, err)
		}
		if out[i].key, err = p.span(at, order.Uint32(elem), order.Uint32(elem[4:])); err != nil {
			return nil, fmt.Errorf("%s: %w", w.owner, err)
		}
		out[i].page = order.Uint64(elem[8:])
	}
	return out, nil
}

func (w *walk) leaf(p page, low, high []byte) error {
	if p.flags != flagLeaf {
		return fmt.Errorf("%s: page %d is of kind %#x", w.owner, p.id, p.flags)
	}
	for i := range p.count {
		at := pageHeaderSize + i*leafElemSize
		elem, err := p.span(at, 0, leafElemSize)
		if err != nil {
			return fmt.Errorf("%s: %w", w.owner, err)
		}
		pos, keyLen, valueLen := order.Uint32(elem[4:]), order.Uint32(elem[8:]), order.Uint32(elem[12:])
		key, err := p.span(at, pos, keyLen)
		if err != nil {
			return fmt.Errorf("%s: %w", w.owner, err)
		}
		value, err := p.span(at+int(keyLen), pos, valueLen)
		if err != nil {
			return fmt.Errorf("%s: %w", w.owner, err)
		}
		if order.Uint32(elem) != w.flags {
			return fmt.Errorf("%s: page %d: %q is of kind %#x", w.owner, p.id, key, order.Uint32(elem))
		}
		if !within(key, low, high) || w.last != nil && bytes.Compare(w.last, key) >= 0 {
			return fmt.Errorf("%s: page %d: %q is out of order", w.owner, p.id, key)
		}
		w.last = append(w.last[:0], key...)
		if err := w.visit(key, value); err != nil {
			return fmt.Errorf("%s: page %d: %w", w.owner, p.id, err)
		}
	}
	return nil
}

func within(key, low, high []byte) bool {
	return (low == nil || bytes.Compare(key, low) >= 0) && (high == nil || bytes.Compare(key, high) < 0)
}

// freelist checks that exactly the pages that nothing uses are listed as free: a page that is in use
// and free as well would be overwritten by a later transaction.
func (c *checker) freelist(id uint64) error {
	p, err := c.load(id, "free list")
	if err != nil {
		return err
	}
	if p.flags != flagFreelist {
		return fmt.Errorf("free list: page %d is of kind %#x", id, p.flags)
	}
	// A count that does not fit its 16 bits is 0xFFFF, and the first entry holds it.
	count, at := uint64(p.count), uint64(pageHeaderSize)
	if p.count == 0xFFFF {
		count, at = order.Uint64(p.data[at:]), at+8
	}
	if count > (uint64(len(p.data))-at)/8 {
		return fmt.Errorf("free list: %d entries do not fit its pages", count)
	}
	for i := range count {
		free := order.Uint64(p.data[at+8*i:])
		if other, taken := c.used[free]; taken || free >= c.pages {
			return fmt.Errorf("free list: page %d is free, but part of %q", free, other)
		}
		c.used[free] = "free list"
	}
	if uint64(len(c.used)) != c.pages {
		return fmt.Errorf("free list: %d of %d pages are neither used nor free", c.pages-uint64(len(c.used)), c.pages)
	}
	return nil
}
