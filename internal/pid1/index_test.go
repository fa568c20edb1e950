package pid1_test

import (
	"bytes"
	"reflect"
	"slices"
	"strings"
	"testing"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/internal/pid1"
)

func index() pid1.Index {
	return pid1.Index{Modules: []pid1.Module{
		{Name: "virtio"}, {Name: "virtio_ring", Needs: []string{"virtio"}},
		{Name: "virtio_pci", Needs: []string{"virtio", "virtio_ring"}, Aliases: []string{"pci:v00001AF4d*sv*sd*bc*sc*i*"}},
		{Name: "virtio_net", Needs: []string{"virtio_ring"}, Aliases: []string{"virtio:d00000001v*"}},
		{Name: "llc"}, {Name: "bridge", Always: true, Needs: []string{"llc"}},
		{Name: "e1000e", Aliases: []string{"pci:v00008086d000010D3sv*sd*bc*sc*i*", "pci:v00008086d0000105Esv*sd*bc*sc*i*"}},
	}}
}

func TestWant(t *testing.T) {
	for _, c := range []struct {
		what     string
		hardware []string
		want     string
	}{
		{"nothing", nil, "llc bridge"},
		{"a virtual bus", []string{"pci:v00001AF4d00001041sv00001AF4sd00001100bc02sc00i00"}, "virtio virtio_ring virtio_pci llc bridge"},
		{"a card on it", []string{"virtio:d00000001v00001AF4"}, "virtio virtio_ring virtio_net llc bridge"},
		{"a real card", []string{"acpi:PNP0A03:", "pci:v00008086d0000105Esv00000000sd00000000bc02sc00i00"}, "llc bridge e1000e"},
		{"another's card", []string{"pci:v00008086d0000ABCDsv00000000sd00000000bc02sc00i00"}, "llc bridge"},
	} {
		if got := strings.Join(index().Want(c.hardware), " "); got != c.want {
			t.Errorf("%s: %q, want %q", c.what, got, c.want)
		}
	}
}

func TestIndexReadsBack(t *testing.T) {
	b := index().Bytes()
	got, err := pid1.ParseIndex(b)
	if err != nil || !bytes.Equal(got.Bytes(), b) || len(got.Modules) != 7 || !reflect.DeepEqual(got.Want(nil), index().Want(nil)) {
		t.Fatalf("%v\n%s", err, got.Bytes())
	}
	for _, bad := range []string{"always", "perhaps x", "always ../x", "always .x", "always x\nalways x", "always x y", "alias x pci:*", "always x\nalias x",
		"always x\n\nalways y", strings.Repeat("#", 9<<20)} {
		if _, err := pid1.ParseIndex([]byte(bad)); !fault.Is(err, fault.Invalid) {
			t.Errorf("%.20q: %v", bad, err)
		}
	}
}

func FuzzParseIndex(f *testing.F) {
	f.Add(index().Bytes(), "pci:v00001AF4d00001041sv00001AF4sd00001100bc02sc00i00")
	f.Add([]byte("for x\nalias x [\n"), "[")
	f.Fuzz(func(t *testing.T, b []byte, device string) {
		x, err := pid1.ParseIndex(b)
		if err != nil {
			return
		}
		names := x.Want([]string{device})
		for i, m := range x.Modules {
			at := slices.Index(names, m.Name)
			for _, n := range m.Needs {
				if need := slices.Index(names, n); at >= 0 && (need < 0 || need > at) {
					t.Fatalf("module %d, %s, is loaded without %s: %v", i, m.Name, n, names)
				}
			}
		}
	})
}

func TestParseCmdline(t *testing.T) {
	got, err := pid1.ParseCmdline("BOOT_IMAGE=/vmlinuz quiet rerack.phonehome=http://10.0.0.1/p/x?y=z dyndbg=\"file a b\" quiet\n")
	want := map[string]string{"BOOT_IMAGE": "/vmlinuz", "quiet": "", "rerack.phonehome": "http://10.0.0.1/p/x?y=z", "dyndbg": "file a b"}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := pid1.ParseCmdline(strings.Repeat("x", 1<<17)); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
}
