package grub_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe/grub"
	"rerack.dev/rerack/pxe/ipxe"
)

// play runs a configuration in which the commands named fail, and tells what was done.
func play(t testing.TB, config []byte, fails ...string) (did [][]string, end error) {
	t.Helper()
	s, err := grub.Parse(config, "(tftp,10.0.0.1)boot/T")
	if err != nil {
		t.Fatalf("own configuration is not read: %v\n%s", err, config)
	}
	end = grub.Run(t.Context(), s, func(_ context.Context, c grub.Statement) error {
		did = append(did, append([]string{c.Name}, c.Args...))
		switch {
		case slices.Contains(fails, c.Name):
			return errors.New("failed")
		case c.Name == "boot":
			return grub.ErrStop
		}
		return nil
	})
	return did, end
}

func names(did [][]string) string {
	var out []string
	for _, d := range did {
		out = append(out, d[0])
	}
	return strings.Join(out, " ")
}

func TestLinux(t *testing.T) {
	b, err := grub.Linux("/boot/T/kernel", []string{"/boot/T/initrd/0", "/boot/T/initrd/1"}, []ipxe.Param{{Key: "console", Value: "ttyS0"}, {Key: "quiet"}})
	if err != nil {
		t.Fatal(err)
	}
	const want = `if linux '/boot/T/kernel' 'console=ttyS0' 'quiet'; then
  if initrd '/boot/T/initrd/0' '/boot/T/initrd/1'; then
    boot
  fi
fi
exit
`
	if string(b) != want {
		t.Errorf("got\n%s", b)
	}
	for fails, does := range map[string]string{"": "linux initrd boot", "linux": "linux", "initrd": "linux initrd", "boot": "linux initrd boot"} {
		did, end := play(t, b, fails)
		if names(did) != does {
			t.Errorf("when %q fails it does %v", fails, did)
		}
		if want := map[bool]error{true: grub.ErrStop, false: grub.ErrExit}[fails == ""]; !errors.Is(end, want) {
			t.Errorf("when %q fails it ends with %v", fails, end)
		}
	}
}

func TestEFI(t *testing.T) {
	b, err := grub.EFI("/boot/T/image/boot.efi")
	if err != nil {
		t.Fatal(err)
	}
	if did, end := play(t, b); names(did) != "chainloader boot" || did[0][1] != "/boot/T/image/boot.efi" || !errors.Is(end, grub.ErrStop) {
		t.Errorf("%v, %v", did, end)
	}
}

// A machine asks for its own file in the folder it was loaded from, until that boots something.
func TestEntryAsksUntilItBoots(t *testing.T) {
	entry, err := grub.Parse(grub.Entry(), "(tftp,10.0.0.1)boot/T")
	if err != nil {
		t.Fatal(err)
	}
	held, err := grub.Parse(grub.Hold(), "")
	if err != nil {
		t.Fatal(err)
	}
	asked, slept := 0, 0
	err = grub.Run(t.Context(), entry, func(ctx context.Context, s grub.Statement) error {
		if s.Name == "sleep" {
			slept++
			return nil
		}
		if s.Name != "source" || !slices.Equal(s.Args, []string{"(tftp,10.0.0.1)boot/T/grub.cfg"}) {
			t.Fatalf("it does %v", s)
		}
		switch asked++; asked {
		case 1, 3:
			return grub.Run(ctx, held, nil)
		case 2:
			return errors.New("no answer")
		}
		return grub.ErrStop
	})
	if !errors.Is(err, grub.ErrStop) || asked != 4 || slept != 3 {
		t.Errorf("asked %d times, slept %d, %v", asked, slept, err)
	}
}

// TestInjection holds H83 and CVE-2026-46447: no value gets out of its place.
func TestInjection(t *testing.T) {
	for _, p := range []string{"\n", "\r", "\x00", " ", "\t", "'", "\"", "' 'x", "'; reboot; '", "$", "$root", "${root}", "\\", "`id`", "$(id)", ";", "|", "&", "{", "}", "#", "(hd0)", "<", ">",
		"é", "\u2028", "*", "?", "[a]", "//etc", "\x1b[2J"} {
		refused := func(what string, err error) {
			t.Helper()
			if !fault.Is(err, fault.Invalid) {
				t.Errorf("%s with %q: %v", what, p, err)
			}
		}
		_, err := grub.Linux("/boot"+p, nil, nil)
		refused("kernel", err)
		_, err = grub.Linux("/boot", []string{"/boot" + p}, nil)
		refused("initrd", err)
		_, err = grub.EFI("/boot" + p)
		refused("image", err)
		if _, err = grub.Linux("/boot", nil, []ipxe.Param{{Key: "a", Value: "b" + p}}); p != "//etc" {
			refused("parameter", err)
		}
	}
	for _, p := range []string{"", "/", "boot", "(hd0)/x", "/" + strings.Repeat("a", 128)} {
		if _, err := grub.EFI(p); !fault.Is(err, fault.Invalid) {
			t.Errorf("path %q: %v", p, err)
		}
	}
	if _, err := grub.Linux("/k", make([]string, 17), nil); !fault.Is(err, fault.Invalid) {
		t.Errorf("17 initial RAM disks: %v", err)
	}
}

func TestParseRefuses(t *testing.T) {
	for _, s := range []string{"'boot'", "reboot", "if", "if linux", "if linux;", "if linux; do", "if linux; then", "if linux; then fi", "if linux; then boot", "fi", "then", "while true; then boot; done",
		"linux 'x", "linux \"$root\"", "linux \"`x`\"", "linux $root", "linux 'a'b", "linux '\x01'", "linux 'é'", "linux a|b", "set root=x", "{ boot }",
		strings.Repeat("if true; then ", 10) + "boot" + strings.Repeat("; fi", 10), strings.Repeat("true a\n", 600), strings.Repeat(" ", grub.MaxConfig+1)} {
		if _, err := grub.Parse([]byte(s), ""); !fault.Is(err, fault.Invalid) && !fault.Is(err, fault.Unsupported) {
			t.Errorf("%.60q: %v", s, err)
		}
	}
}

func TestRunEndsInCircles(t *testing.T) {
	s, err := grub.Parse([]byte("while true; do true; done\n"), "")
	if err != nil {
		t.Fatal(err)
	}
	if err := grub.Run(t.Context(), s, nil); !fault.Is(err, fault.Timeout) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := grub.Run(ctx, s, nil); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func FuzzRoundTrip(f *testing.F) {
	f.Add("/boot/T/kernel", "/boot/T/initrd/0", "console", "ttyS0,115200n8")
	f.Add("/k", "/i' '/j", "a b", "$root")
	f.Add("/k\nreboot", "/i;boot", "-a", "'")
	f.Fuzz(func(t *testing.T, kernel, initrd, key, value string) {
		param := ipxe.Param{Key: key, Value: value}
		if b, err := grub.Linux(kernel, []string{initrd}, []ipxe.Param{param}); err == nil {
			did, end := play(t, b)
			if len(did) != 3 || !slices.Equal(did[0], []string{"linux", kernel, param.String()}) || !slices.Equal(did[1], []string{"initrd", initrd}) || !errors.Is(end, grub.ErrStop) {
				t.Fatalf("%q became %v", b, did)
			}
		}
		if b, err := grub.EFI(kernel); err == nil {
			if did, _ := play(t, b); len(did) != 2 || !slices.Equal(did[0], []string{"chainloader", kernel}) {
				t.Fatalf("%q became %v", b, did)
			}
		}
	})
}

func FuzzParse(f *testing.F) {
	linux, _ := grub.Linux("/k", []string{"/i"}, nil)
	for _, s := range []string{string(grub.Entry()), string(grub.Hold()), string(linux), "if chainloader '/x'; then boot; fi; exit", "# a\n\techo \"$cmdpath/x\" # b"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := grub.Parse(b, "x")
		if err != nil {
			return
		}
		n := 0
		_ = grub.Run(t.Context(), s, func(context.Context, grub.Statement) error { // any end is right; a panic is not
			if n++; n > 1000 {
				return grub.ErrExit
			}
			return nil
		})
	})
}
