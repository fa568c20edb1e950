package tgtadm

import (
	"bytes"
	"testing"
)

func TestRequestRoundTrip(t *testing.T) {
	want := Request{Mode: Connection, Op: Delete, TID: 7, SID: 9, LUN: 3, CID: 2, Force: true, Dir: 1, Params: "initiator-address=10.0.0.1"}
	raw, err := want.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, driver, err := ReadRequest(bytes.NewReader(raw))
	if err != nil || got != want || driver != "iscsi" {
		t.Fatalf("got %+v for %q, %v", got, driver, err)
	}
	for n := range raw {
		if _, _, err := ReadRequest(bytes.NewReader(raw[:n])); err == nil {
			t.Fatalf("a request cut to %d bytes was read", n)
		}
	}
	if _, err := (Request{Params: "a\x00b"}).Encode(); err == nil {
		t.Fatal("a NUL in the parameters was sent")
	}
}

func FuzzReadAnswer(f *testing.F) {
	for _, text := range []string{"", "Target 1: iqn.x\n"} {
		var b bytes.Buffer
		_ = WriteAnswer(&b, Success, text)
		f.Add(b.Bytes())
	}
	f.Add([]byte{4, 0, 0, 0, 8, 0, 0, 0})
	f.Add([]byte{0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 'x'})
	f.Fuzz(func(t *testing.T, raw []byte) {
		text, err := ReadAnswer(bytes.NewReader(raw), 1<<16)
		if err == nil && len(text) > len(raw) {
			t.Fatalf("%d bytes out of %d", len(text), len(raw))
		}
	})
}

func FuzzReadRequest(f *testing.F) {
	raw, _ := Request{Mode: Target, Op: Bind, TID: 1, Params: "initiator-address=10.0.0.1"}.Encode()
	f.Add(raw)
	f.Add(raw[:40])
	f.Fuzz(func(t *testing.T, raw []byte) {
		req, _, err := ReadRequest(bytes.NewReader(raw))
		if err != nil {
			return
		}
		if _, err := req.Encode(); err != nil && len(req.Params) < MaxParams {
			t.Fatalf("%+v was read and cannot be written: %v", req, err)
		}
	})
}
