package secrets_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"rerack.dev/rerack/bmc"
	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/secrets"
)

const canary = "canary-5f1e9d"

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func cred(user, password string) secrets.Credential {
	return secrets.Credential{User: user, Password: bmc.NewSecret(password)}
}

func password(t testing.TB, f *secrets.File, name string) string {
	t.Helper()
	c, err := f.Resolve(t.Context(), name)
	must(t, err)
	return c.Password.Reveal()
}

func TestSecretsAreKeptPrivately(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	path := filepath.Join(dir, "secrets.json")
	f := secrets.Open(path)
	if names, err := f.Names(); err != nil || len(names) != 0 {
		t.Fatalf("without a file: %v %v", names, err)
	}
	if _, err := f.Resolve(t.Context(), "bmc"); !fault.Is(err, fault.NotFound) {
		t.Errorf("without a file: %v", err)
	}
	must(t, f.Set("bmc", cred("root", "a")))
	must(t, f.Set("array", cred("admin", "b")))
	must(t, f.Set("bmc", cred("root", "c")))
	if got := password(t, secrets.Open(path), "bmc"); got != "c" {
		t.Errorf("after a restart: %q", got)
	}
	names, err := f.Names()
	if err != nil || fmt.Sprint(names) != "[array bmc]" {
		t.Errorf("names %v %v", names, err)
	}
	seen := 0
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		must(t, err)
		info, err := d.Info()
		must(t, err)
		if want := map[bool]fs.FileMode{true: 0o700, false: 0o600}[d.IsDir()]; info.Mode().Perm() != want {
			t.Errorf("%s has mode %o", path, info.Mode().Perm())
		}
		seen++
		return nil
	}))
	if seen != 2 {
		t.Errorf("%d files: something was left behind", seen)
	}
}

func TestARotationNeedsNoRestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secrets.json")
	server, operator := secrets.Open(path), secrets.Open(path)
	for i := range 100 { // of equal length, and faster than a clock ticks
		want := fmt.Sprintf("%03d", i)
		must(t, operator.Set("bmc", cred("root", want)))
		if got := password(t, server, "bmc"); got != want {
			t.Fatalf("the server has %q, the file %q", got, want)
		}
	}
	must(t, os.Remove(path))
	if _, err := server.Resolve(t.Context(), "bmc"); !fault.Is(err, fault.NotFound) {
		t.Errorf("after the file is gone: %v", err)
	}
}

func TestABadFileIsRefused(t *testing.T) {
	for name, tt := range map[string]struct {
		content string
		mode    fs.FileMode
		want    fault.Kind
	}{
		"others read it": {`{"a":{"password":"` + canary + `"}}`, 0o640, fault.Unsafe},
		"not JSON":       {`{"a":{"password":` + canary, 0o600, fault.Invalid},
		"another shape":  {`{"a":"` + canary + `"}`, 0o600, fault.Invalid},
		"too large":      {`{"` + strings.Repeat("x", 5<<20) + `":{}}`, 0o600, fault.Invalid},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "secrets.json")
			must(t, os.WriteFile(path, []byte(tt.content), 0o600))
			must(t, os.Chmod(path, tt.mode))
			f := secrets.Open(path)
			_, read := f.Resolve(t.Context(), "a")
			_, names := f.Names()
			for _, err := range []error{read, names, f.Set("b", cred("u", "p"))} {
				if !fault.Is(err, tt.want) || strings.Contains(err.Error(), canary) {
					t.Errorf("got %v", err)
				}
			}
			if now, err := os.ReadFile(path); err != nil || string(now) != tt.content {
				t.Errorf("the file was written over: %v", err)
			}
		})
	}
}

func TestConcurrentSetsLoseNothing(t *testing.T) {
	f := secrets.Open(filepath.Join(t.TempDir(), "secrets.json"))
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			name := fmt.Sprint(i)
			if err := f.Set(name, cred("u", name)); err != nil {
				t.Error(err)
			}
			if c, err := f.Resolve(t.Context(), name); err != nil || c.Password.Reveal() != name {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
	wg.Wait()
	if names, err := f.Names(); err != nil || len(names) != 20 {
		t.Errorf("%d are left, %v", len(names), err)
	}
}

func TestNoFormattingPrintsAPassword(t *testing.T) {
	f := secrets.Open(filepath.Join(t.TempDir(), "secrets.json"))
	must(t, f.Set("bmc", cred("root", canary)))
	c, err := f.Resolve(t.Context(), "bmc")
	must(t, err)
	if c.Password.Reveal() != canary {
		t.Fatal("not the password that was set")
	}
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		fmt.Fprintf(&out, verb+verb+verb, c, &c, c.Password)
	}
	for _, h := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
		slog.New(h).Info("x", "credential", c, "pointer", &c, "password", c.Password)
	}
	must(t, json.NewEncoder(&out).Encode(map[string]any{"c": c, "p": &c}))
	fmt.Fprintf(&out, "%v", fault.Newf(fault.Internal, "%v", c))
	_, missing := f.Resolve(t.Context(), "other")
	fmt.Fprint(&out, missing)
	hex := fmt.Sprintf("%x", canary)
	if s := out.String(); strings.Contains(s, canary) || strings.Contains(s, hex) || !strings.Contains(s, "redacted") {
		t.Errorf("printed: %s", s)
	}
}
