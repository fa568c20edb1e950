package capture_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe/capture"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestParseDisk(t *testing.T) {
	for s, want := range map[string]string{
		"wwn:5000c500a1b2c3d4": "wwn:5000c500a1b2c3d4", "wwn:0x5000C500A1B2C3D4": "wwn:5000c500a1b2c3d4", "wwn:naa.5000c500a1b2c3d4": "wwn:5000c500a1b2c3d4",
		"wwn:50:00:c5:00:a1:b2:c3:d4": "wwn:5000c500a1b2c3d4", "wwn:eui.0025385b71b00d05": "wwn:0025385b71b00d05",
		"wwn:naa.600508b1001c4d2f0123456789abcdef": "wwn:600508b1001c4d2f0123456789abcdef", "serial:S3Z8NB0K": "serial:S3Z8NB0K", "serial:WD WCC4 1": "serial:WD WCC4 1",
		"": "", "sda": "", "/dev/sda": "", "wwn:": "", "wwn:5000": "", "serial:": "", "serial:a\nb": "", "serial:$(reboot)": "", "path:x": "", "wwn:5000c500a1b2c3dg": "",
	} {
		d, err := capture.ParseDisk(s)
		if want == "" {
			if !fault.Is(err, fault.Invalid) {
				t.Errorf("%q: %v, %v", s, d, err)
			}
		} else if err != nil || d.String() != want {
			t.Errorf("%q: %v, %v", s, d, err)
		}
	}
}

// sysfs makes a folder like /sys with these files below block; a name that ends in / is a folder.
func sysfs(t *testing.T, files map[string]string) string {
	t.Helper()
	sys := t.TempDir()
	for name, data := range files {
		path := filepath.Join(sys, "block", name)
		if strings.HasSuffix(name, "/") {
			must(t, os.MkdirAll(path, 0o755))
			continue
		}
		must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		must(t, os.WriteFile(path, []byte(data), 0o600))
	}
	return sys
}

func TestFind(t *testing.T) {
	sys := sysfs(t, map[string]string{
		"vda/device/": "", "vda/serial": "d0-m1", // virtio_blk
		"nvme0n1/device/serial": "S64ANS0T400000  \n", "nvme0n1/wwid": "eui.0025385b71b00d05\n",
		"sda/device/vpd_pg80": "\x00\x80\x00\x0d  WCC4E000000", "sda/device/wwid": "naa.5000c500a1b2c3d4\n", // SATA behind a SAS controller
		"sdb/device/vpd_pg80": "\x00\x80\x00\x04SAME", "sdc/device/vpd_pg80": "\x00\x80\x00\x04SAME", "sdc/device/wwid": "t10.ATA     Samsung SSD\n",
		"sdd/device/vpd_pg80": "\x00\x80\xff\xffcut", "sde/device/vpd_pg80": "\x00",
		"sr0/device/": "", "sr0/serial": "CDROM", "loop0/serial": "LOOP", "dm-0/serial": "d0-m1", // none of these is a disk
	})
	for want, name := range map[string]string{"serial:d0-m1": "vda", "serial:S64ANS0T400000": "nvme0n1", "wwn:eui.0025385b71b00d05": "nvme0n1",
		"serial:WCC4E000000": "sda", "wwn:0x5000c500a1b2c3d4": "sda", "serial:cut": "sdd"} {
		d, err := capture.ParseDisk(want)
		must(t, err)
		if got, err := capture.Find(sys, d); err != nil || got.Name != name {
			t.Errorf("%s: %v, %v", want, got, err)
		}
	}
	for want, kind := range map[string]fault.Kind{"serial:SAME": fault.Conflict, "serial:CDROM": fault.NotFound, "serial:LOOP": fault.NotFound,
		"serial:d0": fault.NotFound, "wwn:5000c500a1b2c3d5": fault.NotFound} {
		d, err := capture.ParseDisk(want)
		must(t, err)
		if got, err := capture.Find(sys, d); !fault.Is(err, kind) {
			t.Errorf("%s: %v, %v", want, got, err)
		}
	}
	_, err := capture.Find(sys, capture.Disk{Serial: "gone"})
	for _, says := range []string{"disk not found: serial:gone", "sda serial:WCC4E000000 wwn:5000c500a1b2c3d4", "vda serial:d0-m1"} {
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v does not say %q", err, says)
		}
	}
	if _, err := capture.Find(sys, capture.Disk{Serial: "SAME"}); err == nil || !strings.Contains(err.Error(), "2 disks match") {
		t.Error(err)
	}
	// Disks without a name of their own are not found by an empty one.
	if _, err := capture.ParseDisk("serial:"); err == nil {
		t.Error("an empty serial number")
	}
}

func TestOrdersHideTheSecret(t *testing.T) {
	o := capture.Orders{Disk: "serial:x", Target: "iqn.2026-01.org.example:v", User: "u", Secret: "canary-secret"}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("orders", "do", o, "p", &o)
	for _, s := range []string{o.String(), fmt.Sprintf("%v %+v %#v %s", o, o, o, &o), log.String()} {
		if strings.Contains(s, "canary-secret") {
			t.Errorf("%s", s)
		}
	}
	b, err := json.Marshal(o)
	if err != nil || !strings.Contains(string(b), "canary-secret") {
		t.Errorf("the machine does not get it: %s, %v", b, err)
	}
}

func FuzzReport(f *testing.F) {
	digest := strings.Repeat("ab", 32)
	for _, s := range []string{`{}`, `{"stage":"copy","size":1024,"digests":["` + digest + `"]}`, `{"stage":"verify","first":3,"size":9,"sha256":"` + digest + `","hash":"c2hh"}`,
		`{"stage":"copy","failure":{"kind":"internal","text":"read error at LBA 7"}}`, `{"stage":"copy","first":-1}`, `{"stage":"done"}`, `{"stage":"copy","digests":["AB"]}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var r capture.Report
		if json.Unmarshal(b, &r) != nil || r.Validate() != nil {
			return
		}
		if r.Size < 0 || r.Size > capture.MaxSize || r.First < 0 || len(r.Digests) > capture.MaxDigests || len(r.Hash) > 256 {
			t.Fatalf("%+v", r)
		}
		for _, d := range r.Digests {
			if len(d) != 64 || strings.ToLower(d) != d {
				t.Fatalf("digest %q", d)
			}
		}
	})
}

func FuzzParseDisk(f *testing.F) {
	for _, s := range []string{"wwn:0x5000c500a1b2c3d4", "serial:S3Z8NB0K", "serial: x", "wwn:naa.", ":"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := capture.ParseDisk(s)
		if err != nil {
			return
		}
		if (d.WWN == "") == (d.Serial == "") {
			t.Fatalf("%+v", d)
		}
		if again, err := capture.ParseDisk(d.String()); err != nil || again != d {
			t.Fatalf("%v, read again %v: %v", d, again, err)
		}
	})
}
