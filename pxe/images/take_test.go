package images_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"aead.dev/minisign"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/images"
)

func none(pxe.Digest) bool { return false }

// web is an image that is still to come, with its files.
func web(kernel, initrd string) (images.Record, func(int) (io.Reader, error)) {
	r := images.Record{Manifest: images.Manifest{Name: "web", Type: "kernel", Arch: "x86_64", Cmdline: map[string]string{"quiet": "", "console": "ttyS0"},
		Files: []images.Part{{Role: images.RoleKernel}, {Role: images.RoleInitrd}}}}
	return r, func(i int) (io.Reader, error) { return strings.NewReader([]string{kernel, initrd}[i]), nil }
}

func TestTake(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, images.Options{})
	r, next := web("kernel", "initrd")
	got, err := s.Take(t.Context(), r, next)
	if err != nil || got.Manifest.Files[1] != (images.Part{Role: images.RoleInitrd, Digest: digest([]byte("initrd")), Size: 6}) {
		t.Fatalf("%+v, %v", got, err)
	}
	if r.Manifest.Files[0].Digest != "" {
		t.Error("the caller's manifest was changed")
	}
	if kept, err := open(t, dir, images.Options{}).Image("web"); err != nil || !bytes.Equal(kept.Manifest.Text(), got.Manifest.Text()) {
		t.Errorf("kept %+v, %v", kept, err)
	}
	if left(t, dir, "incoming") != 0 || left(t, dir, "sha256") != 2 {
		t.Error("not just its files are there")
	}
	// The same again, with digests known; then another kernel under the name.
	if again, err := s.Take(t.Context(), got, next); err != nil || again.Manifest.Size() != 12 {
		t.Errorf("again: %+v, %v", again, err)
	}
	_, next = web("newer", "initrd")
	if _, err := s.Take(t.Context(), r, next); err != nil {
		t.Fatal(err)
	}
	if g, err := s.Garbage(none); err != nil || len(g) != 1 || g[0] != (images.Blob{Digest: digest([]byte("kernel")), Size: 6}) {
		t.Errorf("garbage %+v, %v", g, err)
	}
	if g, err := s.Garbage(func(d pxe.Digest) bool { return d == digest([]byte("kernel")) }); err != nil || len(g) != 0 {
		t.Errorf("garbage that is held back: %+v, %v", g, err)
	}
}

func TestTakeRefusesAndLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, images.Options{MaxSize: 1000})
	for name, tt := range map[string]struct {
		spoil func(*images.Record)
		last  io.Reader
		kind  fault.Kind
	}{
		"CVE-2024-47211 checksum": {func(r *images.Record) { r.Manifest.Files[1].Digest = digest([]byte("x")) }, strings.NewReader("initrd"), fault.Unverified},
		"truncated":               {func(r *images.Record) { r.Manifest.Files[1].Size = 100 }, strings.NewReader("initrd"), fault.Unverified},
		"too large":               {nil, zeros{}, fault.Invalid},
		"empty":                   {nil, strings.NewReader(""), fault.Invalid},
		"source breaks":           {nil, io.MultiReader(strings.NewReader("ini"), broken{}), fault.Internal},
		"traversal":               {func(r *images.Record) { r.Manifest.Name = "../../etc/cron.d/x" }, nil, fault.Invalid},
		"no such type":            {func(r *images.Record) { r.Manifest.Type = "qcow2" }, nil, fault.Invalid},
		"no such arch":            {func(r *images.Record) { r.Manifest.Arch = "vax" }, nil, fault.Invalid},
		"two kernels":             {func(r *images.Record) { r.Manifest.Files[1].Role = images.RoleKernel }, nil, fault.Invalid},
		"no files":                {func(r *images.Record) { r.Manifest.Files = nil }, nil, fault.Invalid},
		"parameter injection":     {func(r *images.Record) { r.Manifest.Cmdline["a"] = "b ${net0/mac}" }, nil, fault.Invalid},
		"no such firmware":        {func(r *images.Record) { r.Manifest.Firmware = []string{"openfirmware"} }, nil, fault.Invalid},
	} {
		r, next := web("kernel", "")
		if tt.spoil != nil {
			tt.spoil(&r)
		}
		_, err := s.Take(t.Context(), r, func(i int) (io.Reader, error) {
			if i == 1 {
				return tt.last, nil
			}
			return next(i)
		})
		if !fault.Is(err, tt.kind) {
			t.Errorf("%s: %v", name, err)
		}
		if n := left(t, dir, "incoming") + left(t, dir, "sha256") + left(t, dir, "manifests"); n != 0 {
			t.Errorf("%s: %d files are left", name, n)
		}
	}
}

func TestCheckAndRemove(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, images.Options{})
	r, next := web("kernel", "initrd")
	if _, err := s.Take(t.Context(), r, next); err != nil {
		t.Fatal(err)
	}
	r.Manifest.Name = "other"
	r.Manifest.Files = r.Manifest.Files[:1]
	if _, err := s.Take(t.Context(), r, next); err != nil {
		t.Fatal(err)
	}
	states := func() (out []string) {
		_, parts, err := s.Check(t.Context(), "web")
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range parts {
			out = append(out, p.State)
		}
		return out
	}
	if got := states(); got[0] != "ok" || got[1] != "ok" {
		t.Error(got)
	}
	if err := os.WriteFile(filepath.Join(dir, "sha256", digest([]byte("kernel")).Hex()), []byte("kernal"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "sha256", digest([]byte("initrd")).Hex())); err != nil {
		t.Fatal(err)
	}
	if got := states(); got[0] != "damaged" || got[1] != "missing" {
		t.Error(got)
	}
	r, next = web("kernel", "initrd")
	if _, err := s.Take(t.Context(), r, next); err != nil { // an import mends it
		t.Fatal(err)
	}
	if got := states(); got[0] != "ok" || got[1] != "ok" {
		t.Error(got)
	}
	gone, err := s.Remove("web", none)
	if err != nil || len(gone) != 1 || gone[0] != digest([]byte("initrd")) {
		t.Errorf("removed %v, %v: the other image needs the kernel", gone, err)
	}
	if _, err := s.Image("web"); !fault.Is(err, fault.NotFound) {
		t.Errorf("after its removal: %v", err)
	}
	if gone, err = s.Remove("other", func(pxe.Digest) bool { return true }); err != nil || len(gone) != 0 {
		t.Errorf("removed %v, %v: all was held back", gone, err)
	}
	if g, err := s.Garbage(none); err != nil || len(g) != 1 {
		t.Errorf("garbage %v, %v", g, err)
	}
	if _, err := s.Remove("web", none); !fault.Is(err, fault.NotFound) {
		t.Errorf("twice: %v", err)
	}
}

type maker struct {
	pub minisign.PublicKey
	key minisign.PrivateKey
}

func newMaker(t testing.TB) maker {
	t.Helper()
	pub, key, err := minisign.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return maker{pub, key}
}

func TestSignatures(t *testing.T) {
	dir := t.TempDir()
	good, bad := newMaker(t), newMaker(t)
	s := open(t, dir, images.Options{Keys: images.Keys{good.pub}})
	r, next := web("kernel", "initrd")
	m := r.Manifest
	m.Files = []images.Part{{Role: images.RoleKernel, Digest: digest([]byte("kernel")), Size: 6}, {Role: images.RoleInitrd, Digest: digest([]byte("initrd")), Size: 6}}
	sign := func(w maker, m images.Manifest) string { return string(minisign.Sign(w.key, m.Text())) }
	other := m
	other.Cmdline = map[string]string{"init": "/bin/sh"}
	for name, tt := range map[string]struct {
		signature string
		kind      fault.Kind
	}{
		"none":                 {"", fault.Unverified},
		"another key":          {sign(bad, m), fault.Unverified},
		"another command line": {sign(good, other), fault.Unverified},
		"no signature":         {"rubbish", fault.Invalid},
		"too long":             {strings.Repeat("x", 10<<10), fault.Invalid},
	} {
		r.Signature = tt.signature
		if _, err := s.Take(t.Context(), r, next); !fault.Is(err, tt.kind) {
			t.Errorf("%s: %v", name, err)
		}
		if n := left(t, dir, "incoming") + left(t, dir, "sha256") + left(t, dir, "manifests"); n != 0 {
			t.Errorf("%s: %d files are left", name, n)
		}
	}
	r.Signature = sign(good, m)
	got, err := s.Take(t.Context(), r, next)
	if err != nil || got.SignedBy == "" {
		t.Fatalf("%+v, %v", got, err)
	}
	f, err := s.Open(digest([]byte("kernel")))
	if err != nil {
		t.Fatal(err)
	}
	f.Close()

	// What came in before signatures were asked for is not served, what the server brought itself is.
	if _, err := open(t, dir, images.Options{}).Import(t.Context(), "old", strings.NewReader("unsigned"), ""); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Open(digest([]byte("unsigned"))); !fault.Is(err, fault.Unverified) {
		t.Errorf("an unsigned file: %v", err)
	}
	loader, err := s.Import(t.Context(), "undionly.kpxe", strings.NewReader("loader"), "")
	if err != nil {
		t.Fatal(err)
	}
	if f, err = s.Open(loader); err != nil {
		t.Fatal(err)
	}
	f.Close()
	// A manifest that somebody changed on the disk makes none of its files trusted.
	path := filepath.Join(dir, "manifests", "web")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, bytes.Replace(b, []byte("ttyS0"), []byte("ttyS1"), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, images.Options{Keys: images.Keys{good.pub}})
	if _, err := s.Open(digest([]byte("kernel"))); !fault.Is(err, fault.Unverified) {
		t.Errorf("a manifest changed on the disk: %v", err)
	}
	if _, _, err := s.Check(t.Context(), "web"); !fault.Is(err, fault.Unverified) {
		t.Errorf("and checked: %v", err)
	}
}

func TestReadKeys(t *testing.T) {
	file := filepath.Join(t.TempDir(), "maker.pub")
	text, err := newMaker(t).pub.MarshalText()
	if err := errors.Join(err, os.WriteFile(file, text, 0o600)); err != nil {
		t.Fatal(err)
	}
	if k, err := images.ReadKeys([]string{file}); err != nil || len(k) != 1 {
		t.Errorf("%v, %v", k, err)
	}
	if err := os.WriteFile(file, []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{file, file + ".not-there"} {
		if _, err := images.ReadKeys([]string{f}); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", f, err)
		}
	}
}

func FuzzSignature(f *testing.F) {
	m := newMaker(f)
	r, _ := web("", "")
	f.Add(string(minisign.Sign(m.key, r.Manifest.Text())))
	f.Add("untrusted comment: x\nRUQ=\ntrusted comment: x\n=\n")
	f.Add("")
	trust := images.Keys{newMaker(f).pub} // no signature can be of this one
	f.Fuzz(func(t *testing.T, s string) {
		r.Signature = s
		if by, err := trust.Approve(&r); err == nil {
			t.Errorf("%q passes for the signature of %s", s, by)
		}
	})
}

func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"manifest":{"name":"web","type":"disk","arch":"arm64","files":[{"role":"disk","digest":"sha256:0000000000000000000000000000000000000000000000000000000000000003","size":5}]},"at":"2026-01-01T00:00:00Z"}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := images.ParseRecord(b)
		if err != nil {
			return
		}
		if !r.Manifest.Complete() || r.Manifest.Validate() != nil || len(r.Manifest.Text()) == 0 {
			t.Errorf("%+v", r)
		}
	})
}
