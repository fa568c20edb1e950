package tftp

import (
	"bytes"
	"strings"
	"testing"
)

func FuzzParseRequest(f *testing.F) {
	for _, s := range []string{"\x00\x01f\x00octet\x00", "\x00\x01f\x00octet\x00blksize\x001468\x00tsize\x000\x00windowsize\x0016\x00timeout\x003\x00",
		"\x00\x02f\x00netascii\x00", "\x00\x01../../etc/passwd\x00octet\x00", "\x00\x01f\x00octet\x00blksize\x00\x00"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseRequest(b)
		if err != nil {
			return
		}
		if r.name == "" || len(r.name) > maxName || strings.ContainsAny(r.name, "\x00\n\r") {
			t.Fatalf("name %q", r.name)
		}
		if o := r.options; o.block != 0 && (o.block < minBlock || o.block > maxBlock) || o.window < 0 || o.window > 65535 || o.timeout > 255 || o.tsize < 0 {
			t.Fatalf("options %+v", o)
		}
		if r.op == opRRQ && r.mode == "octet" {
			again, err := parseRequest(appendRequest(nil, r.name, r.options))
			if err == nil && again != r {
				t.Fatalf("%+v came back as %+v", r, again)
			}
		}
	})
}

// FuzzClient feeds a receiver three packets of a hostile server.
func FuzzClient(f *testing.F) {
	f.Add([]byte("\x00\x06blksize\x001468\x00tsize\x009\x00"), []byte("\x00\x03\x00\x01data"), []byte("\x00\x05\x00\x01no\x00"))
	f.Add([]byte("\x00\x06windowsize\x0099999\x00"), []byte("\x00\x03\xff\xffdata"), []byte("\x00\x03\x00\x02"))
	f.Fuzz(func(t *testing.T, a, b, c []byte) {
		var got bytes.Buffer
		g := &get{c: Client{MaxSize: 2000}, conn: nowhere{}, w: &got, block: stdBlock, window: 1, size: -1}
		for _, p := range [][]byte{a, b, c} {
			done, _, err := g.packet(p, options{block: 1468, window: 4, hasSize: true})
			if got.Len() > 2000 {
				t.Fatalf("took %d bytes", got.Len())
			}
			if done || err != nil {
				return
			}
		}
	})
}
