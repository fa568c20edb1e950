package agent

import (
	"bytes"
	"encoding/json"
	"testing"

	"rerack.dev/rerack/hypervisor/driver"
	"rerack.dev/rerack/internal/fault"
)

func FuzzDecodeSpec(f *testing.F) {
	f.Fuzz(func(t *testing.T, raw []byte) {
		s, err := decodeSpec(bytes.NewReader(raw))
		if err != nil {
			if !fault.Is(err, fault.Invalid) {
				t.Fatalf("%q: kind %s", raw, fault.KindOf(err))
			}
			return
		}
		if s.Epoch == 0 || s.CPUs < 1 || s.MemoryMiB < 1 || driver.CheckName(s.Name) != nil {
			t.Fatalf("%q passes as %+v", raw, s)
		}
		for _, d := range s.Disks {
			if (d.ISCSI == nil) == (d.FC == nil) {
				t.Fatalf("%q has a disk with no way or two", raw)
			}
		}
		out, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		again, err := decodeSpec(bytes.NewReader(out))
		if err != nil || !again.Equal(s) || !again.Equal(s.Clone()) {
			t.Fatalf("%q does not survive: %v", raw, err)
		}
	})
}

func FuzzDecodeAnswer(f *testing.F) {
	f.Fuzz(func(t *testing.T, code int, raw []byte) {
		var vms []driver.VM
		var room driver.Capacity
		for _, out := range []any{nil, &vms, &room} {
			err := decodeAnswer(code, bytes.NewReader(raw), out)
			if err != nil {
				if len(err.Error()) > maxDetail+1024 && code != 200 {
					t.Fatalf("an error of %d bytes", len(err.Error()))
				}
				continue
			}
			if code != 200 || !json.Valid(raw) {
				t.Fatalf("HTTP %d %q is success", code, raw)
			}
			if out == any(&vms) && vms == nil {
				t.Fatalf("%q is no list", raw)
			}
		}
	})
}
