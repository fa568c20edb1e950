package bootclient

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/internal/secret"
	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/ipxe"
)

// maxSleep bounds what a script may make the machine wait for at once.
const maxSleep = 5 * time.Minute

// follow fetches the script and does what it says, and then what the scripts say that took its place.
func (m *machine) follow(ctx context.Context, u string) error {
	var b bytes.Buffer
	if err := m.get(ctx, u, &b, ipxe.MaxScript); err != nil {
		return err
	}
	for script := b.Bytes(); script != nil; script = m.next {
		cmds, err := ipxe.Parse(script)
		if err != nil {
			return err
		}
		m.step("script", strconv.Itoa(len(cmds))+" commands")
		m.next = nil
		if err := ipxe.Run(ctx, cmds, m.do); err != nil {
			return err
		}
	}
	return nil
}

func (m *machine) do(ctx context.Context, c ipxe.Command) error {
	m.step("command", c.Name)
	switch c.Name {
	case "dhcp":
		_, err := m.configure(ctx, pxe.ClassIPXE)
		return err
	case "imgfree":
		m.kernel, m.out.Kernel, m.out.Initrds, m.out.Cmdline = false, "", nil, ""
		return nil
	case "echo":
		return nil
	case "set":
		m.set(c.Args)
		return nil
	case "sleep":
		return pause(ctx, c.Args)
	case "kernel", "initrd":
		return m.file(ctx, c)
	case "chain":
		return m.chain(ctx, c.Args)
	case "boot":
		if !m.kernel {
			return fault.New(fault.Invalid, "boot without a kernel")
		}
		m.out.End = EndKernel
		return ipxe.ErrStop
	case "sanboot":
		return m.sanboot(ctx, c.Args)
	}
	return fault.Newf(fault.Unsupported, "command %s", c.Name)
}

// set knows the settings that matter to a boot.
func (m *machine) set(args []string) {
	if len(args) != 2 {
		return
	}
	switch args[0] {
	case "initiator-iqn":
		m.initiator = args[1]
	case "username":
		m.login.User = args[1]
	case "password":
		m.login.Secret = secret.New(args[1])
	}
}

func pause(ctx context.Context, args []string) error {
	if len(args) != 1 {
		return fault.New(fault.Invalid, "sleep wants seconds")
	}
	n, err := strconv.ParseUint(args[0], 10, 16)
	if err != nil {
		return fault.Newf(fault.Invalid, "sleep %.20q", args[0])
	}
	t := time.NewTimer(min(time.Duration(n)*time.Second, maxSleep))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

func (m *machine) file(ctx context.Context, c ipxe.Command) error {
	f, err := ipxe.DecodeFile(c.Args)
	if err != nil {
		return err
	}
	d, err := m.fetch(ctx, f.URL)
	if err != nil {
		return err
	}
	switch c.Name {
	case "kernel":
		m.kernel, m.out.Kernel, m.out.Cmdline = true, d, strings.Join(f.Args, " ")
		if u := phoneHome(f.Args); u != "" {
			m.out.PhoneHome = u
		}
	case "initrd":
		m.out.Initrds = append(m.out.Initrds, d)
	}
	return nil
}

// phoneHome is where a kernel's command line says that the system reports.
func phoneHome(args []string) string {
	for _, a := range args {
		if v, ok := strings.CutPrefix(a, pxe.PhoneHomeParam+"="); ok {
			return v
		}
	}
	return ""
}

// chain starts what it fetches: an image ends iPXE, a script goes on in place of the present one. Where
// one should come back to its caller the outcome would be another than iPXE's, so that is refused.
func (m *machine) chain(ctx context.Context, args []string) error {
	f, err := ipxe.DecodeFile(args)
	if err != nil {
		return err
	}
	h, head := sha256.New(), &head{}
	if err := m.get(ctx, f.URL, io.MultiWriter(h, head), m.c.MaxFile); err != nil {
		return err
	}
	switch {
	case !ipxe.IsScript(head.b):
		m.out.End, m.out.Image = EndImage, pxe.DigestOf([32]byte(h.Sum(nil)))
	case !f.Replace:
		return fault.New(fault.Unsupported, "chain of a script without --replace")
	default:
		m.next = head.b
	}
	return ipxe.ErrStop
}

// head keeps the beginning of what is written to it: as much as a script may have, and a byte more.
type head struct{ b []byte }

func (h *head) Write(p []byte) (int, error) {
	h.b = append(h.b, p[:min(len(p), ipxe.MaxScript+1-len(h.b))]...)
	return len(p), nil
}

func (m *machine) sanboot(ctx context.Context, args []string) error {
	s, err := ipxe.DecodeSAN(args)
	if err != nil {
		return err
	}
	switch {
	case s.Target != nil:
		s.Target.Initiator = m.initiator
		m.out.End, m.out.Target, m.out.Login = EndSAN, s.Target, m.login
	case s.URL != "":
		d, err := m.fetch(ctx, s.URL)
		if err != nil {
			return err
		}
		m.out.End, m.out.Image = EndImage, d
	default:
		m.out.End = EndLocalDisk
	}
	return ipxe.ErrStop
}

// tail is the part of a boot URL that is no secret.
func tail(u string) string {
	p, err := url.Parse(u)
	if err != nil {
		return "a malformed URL"
	}
	return path.Base(p.Path)
}

// withoutURL takes the token out of an error of net/http.
func withoutURL(err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		return ue.Err
	}
	return err
}
