package bootclient

import (
	"bytes"
	"context"
	"path"
	"strings"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/grub"
)

// isGRUB reports whether a boot file is GRUB, or the shim that starts it.
func isGRUB(a pxe.Arch, file string) bool {
	name := path.Base(file)
	return a.GRUB() != "" && (name == a.GRUB() || name == a.Shim())
}

// grub is what Debian's GRUB does after it was loaded as ack says: it reads the one file that it asks
// for always, and goes on from there.
func (m *machine) grub(ctx context.Context, ack ack) error {
	folder := path.Dir(ack.file)
	if path.Base(ack.file) == m.c.Arch.Shim() {
		if _, err := m.digest(ctx, ack, folder+"/"+m.c.Arch.GRUB()); err != nil {
			return err
		}
	}
	g := &grubRun{machine: m, ack: ack, cmdpath: "/" + folder}
	err := g.run(ctx, "/"+grub.EntryPath)
	if err == nil {
		return fault.New(fault.NotFound, "GRUB was given nothing to boot")
	}
	if g.booted {
		return nil
	}
	return err
}

// grubRun is GRUB at work.
type grubRun struct {
	*machine
	ack     ack
	cmdpath string
	start   End // what boot would start
	booted  bool
}

// run fetches a configuration and does what it says.
func (g *grubRun) run(ctx context.Context, name string) error {
	var b bytes.Buffer
	if err := g.tftp(ctx, g.ack, name, &b, grub.MaxConfig); err != nil {
		return err
	}
	config, err := grub.Parse(b.Bytes(), g.cmdpath)
	if err != nil {
		return err
	}
	g.step("script", path.Base(name))
	return grub.Run(ctx, config, g.do)
}

func (g *grubRun) do(ctx context.Context, s grub.Statement) error {
	g.step("command", s.Name)
	switch s.Name {
	case "echo":
		return nil
	case "sleep":
		return pause(ctx, s.Args)
	case "boot":
		if g.start == "" {
			return fault.New(fault.Invalid, "boot without a kernel")
		}
		g.out.End, g.booted = g.start, true
		return grub.ErrStop
	}
	if len(s.Args) == 0 {
		return fault.New(fault.Invalid, s.Name+" of nothing")
	}
	if s.Name == "source" {
		return g.run(ctx, s.Args[0])
	}
	return g.file(ctx, s)
}

func (g *grubRun) file(ctx context.Context, s grub.Statement) error {
	files := s.Args[:1]
	if s.Name == "initrd" {
		files = s.Args
	}
	for _, f := range files {
		d, err := g.digest(ctx, g.ack, f)
		if err != nil {
			return err
		}
		switch s.Name {
		case "linux":
			g.start, g.out.Kernel, g.out.Initrds, g.out.Cmdline = EndKernel, d, nil, strings.Join(s.Args[1:], " ")
			g.out.PhoneHome = phoneHome(s.Args[1:])
		case "initrd":
			g.out.Initrds = append(g.out.Initrds, d)
		case "chainloader":
			// The binary has no command line: it asks DHCP where it reports to.
			g.start, g.out.Image, g.out.PhoneHome = EndImage, d, g.ack.phoneHome
		}
	}
	return nil
}
