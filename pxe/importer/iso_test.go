package importer_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe/images"
	"rerack.dev/rerack/pxe/importer"
)

const sector = 2048

// isoFile is a file of a made-up image, at most one folder deep.
type isoFile struct {
	dir, name, rock, data string
}

// makeISO writes the least of ECMA-119: descriptor, terminator, a root with folders, and one sector a file.
func makeISO(files ...isoFile) []byte {
	b := make([]byte, 18*sector)
	put := func(data []byte) (at uint32) {
		at = uint32(len(b) / sector)
		b = append(b, data...)
		b = append(b, make([]byte, -len(b)&(sector-1))...)
		return at
	}
	record := func(name, rock string, at, size uint32, flags byte) []byte {
		r := make([]byte, 33, 255)
		binary.LittleEndian.PutUint32(r[2:], at)
		binary.LittleEndian.PutUint32(r[10:], size)
		r[25], r[32] = flags, byte(len(name))
		r = append(r, name...)
		if len(r)%2 == 1 {
			r = append(r, 0)
		}
		if rock != "" {
			r = append(append(r, 'N', 'M', byte(5+len(rock)), 1, 0), rock...)
		}
		r[0] = byte(len(r))
		return r
	}
	dirs := map[string][]byte{}
	var order []string
	for _, f := range files {
		if _, ok := dirs[f.dir]; !ok {
			order = append(order, f.dir)
			dirs[f.dir] = append(record("\x00", "", 18, sector, 2), record("\x01", "", 18, sector, 2)...)
		}
		dirs[f.dir] = append(dirs[f.dir], record(f.name, f.rock, put([]byte(f.data)), uint32(len(f.data)), 0)...)
	}
	root := append(record("\x00", "", 18, sector, 2), record("\x01", "", 18, sector, 2)...)
	for _, d := range order {
		if d != "" {
			root = append(root, record(d, strings.ToLower(d), put(dirs[d]), uint32(len(dirs[d])), 2)...)
		}
	}
	root = append(root, dirs[""]...)
	at := put(root)
	pvd := b[16*sector:]
	copy(pvd, "\x01CD001\x01")
	copy(pvd[156:], record("\x00", "", at, uint32(len(root)), 2))
	copy(b[17*sector:], "\xffCD001\x01")
	return b
}

func kernel() string {
	b := make([]byte, 1000)
	b[0x1fe], b[0x1ff] = 0x55, 0xaa
	copy(b[0x202:], "HdrS")
	return string(b)
}

const initrd = "070701 an archive"

func TestISOOfKnownMakers(t *testing.T) {
	for maker, files := range map[string][]isoFile{
		"Ubuntu, by plain names":      {{"CASPER", "VMLINUZ.;1", "", kernel()}, {"CASPER", "INITRD.;1", "", initrd}},
		"Debian, by Rock Ridge names": {{"INSTALL.AMD", "VMLI.;1", "vmlinuz", kernel()}, {"INSTALL.AMD", "INIT.GZ;1", "initrd.gz", initrd}},
	} {
		path := filepath.Join(t.TempDir(), "x.iso")
		must(t, os.WriteFile(path, makeISO(files...), 0o600))
		got, err := importer.FromISO(path, "", nil)
		if err != nil || len(got) != 2 || got[0].Role != images.RoleKernel || got[1].Role != images.RoleInitrd {
			t.Fatalf("%s: %+v, %v", maker, got, err)
		}
		if read(t, got[0]) != kernel() || read(t, got[1]) != initrd {
			t.Errorf("%s: other content", maker)
		}
		if d, n, err := importer.Digest(t.Context(), got[1]); err != nil || n != int64(len(initrd)) || d != digestOf(initrd) {
			t.Errorf("%s: %s of %d bytes, %v", maker, d, n, err)
		}
	}
}

func TestISOByName(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.iso")
	must(t, os.WriteFile(path, makeISO(isoFile{"", "LINUX.;1", "", kernel()}, isoFile{"X", "RD1.;1", "", initrd}), 0o600))
	if _, err := importer.FromISO(path, "", nil); !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "--kernel-path") {
		t.Errorf("no known place: %v", err)
	}
	got, err := importer.FromISO(path, "/linux", []string{"x/rd1"})
	if err != nil || read(t, got[1]) != initrd {
		t.Errorf("by name: %v", err)
	}
	// CVE-2026-48681: a path is looked for in the image and nowhere else.
	for _, name := range []string{"../../../../etc/passwd", "/etc/passwd", "x", ".", "x/../../etc/passwd", "\x00", strings.Repeat("x/", 40) + "y"} {
		if _, err := importer.FromISO(path, name, nil); err == nil {
			t.Errorf("found %q", name)
		}
	}
}

func TestDamagedISO(t *testing.T) {
	whole := makeISO(isoFile{"CASPER", "VMLINUZ.;1", "", kernel()}, isoFile{"CASPER", "INITRD.;1", "", initrd})
	for _, n := range []int{0, 1, 16 * sector, 17 * sector, 18 * sector, 19 * sector, len(whole) - sector} {
		iso, err := importer.OpenISO(bytes.NewReader(whole[:n]), int64(n))
		if err == nil {
			_, err = iso.Find("casper/initrd")
		}
		if !fault.Is(err, fault.Invalid) && !fault.Is(err, fault.Unsupported) {
			t.Errorf("cut off after %d bytes: %v", n, err)
		}
	}
	many := bytes.Clone(whole)
	at := bytes.Index(many, []byte("INITRD.;1"))
	many[at-33+25] |= 1 << 7
	iso, err := importer.OpenISO(bytes.NewReader(many), int64(len(many)))
	must(t, err)
	if _, err := iso.Find("casper/initrd"); !fault.Is(err, fault.Unsupported) {
		t.Errorf("several extents: %v", err)
	}
}

// TestISOOfXorriso reads what another program writes.
func TestISOOfXorriso(t *testing.T) {
	xorriso, err := exec.LookPath("xorriso")
	if err != nil {
		missing(t, err)
	}
	dir := t.TempDir()
	for name, data := range map[string]string{"install.amd/vmlinuz": kernel(), "install.amd/initrd.gz": initrd, "pool/a-rather-long-name-with.several.dots.deb": "x"} {
		must(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, "in", name)), 0o700))
		must(t, os.WriteFile(filepath.Join(dir, "in", name), []byte(data), 0o600))
	}
	for _, flags := range [][]string{{"-r"}, {"-r", "-J"}, {"-r", "-iso-level", "1"}} {
		path := filepath.Join(dir, "x.iso")
		cmd := exec.CommandContext(t.Context(), xorriso, append(append([]string{"-as", "mkisofs", "-quiet", "-o", path}, flags...), filepath.Join(dir, "in"))...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		got, err := importer.FromISO(path, "", nil)
		if err != nil || read(t, got[0]) != kernel() || read(t, got[1]) != initrd {
			t.Errorf("%v: %v", flags, err)
		}
		if got, err = importer.FromISO(path, "install.amd/vmlinuz", []string{"pool/a-rather-long-name-with.several.dots.deb"}); err != nil || read(t, got[1]) != "x" {
			t.Errorf("%v: a long name: %v", flags, err)
		}
	}
}

func FuzzISO(f *testing.F) {
	f.Add(makeISO(isoFile{"CASPER", "VMLINUZ.;1", "", kernel()}, isoFile{"CASPER", "INITRD.;1", "", initrd}))
	f.Add(makeISO(isoFile{"", "A.;1", "a", "x"}))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		iso, err := importer.OpenISO(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		for _, name := range []string{"casper/vmlinuz", "a", "install.amd/initrd.gz"} {
			r, err := iso.Find(name)
			if err != nil {
				continue
			}
			if _, offset, n := r.Outer(); offset < 0 || offset+n > int64(len(b)) {
				t.Errorf("%s lies at %d to %d of %d bytes", name, offset, offset+n, len(b))
			}
			if _, err := io.Copy(io.Discard, r); err != nil && !errors.Is(err, io.EOF) {
				t.Error(err)
			}
		}
	})
}
