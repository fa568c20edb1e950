// Package bootclient boots like a machine: its firmware asks DHCP through a relay, fetches a loader by
// TFTP or HTTP, becomes iPXE or GRUB, follows the script, and ends where a machine leaves its firmware. The
// lab's machines and the boot-contract test run it, a thousand at once in one process.
package bootclient

import (
	"context"
	"crypto/sha256"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/dhcp"
	"rerack.dev/rerack/pxe/ipxe"
	"rerack.dev/rerack/pxe/tftp"
)

// Config is a machine's firmware and its place in the network. Zero values mean the defaults named.
type Config struct {
	MAC  pxe.MAC
	UUID [16]byte // SMBIOS UUID
	// Arch is what the firmware says in option 93; pxe.ArchHTTPX64 and pxe.ArchHTTPARM64 boot by HTTP.
	Arch pxe.Arch
	IPXE bool // the network card's ROM is iPXE: no loader is fetched

	DHCPServer netip.AddrPort
	// Relay is the switch's address: messages are sent from it and answers come back to it, at the
	// port they were sent from (RFC 8357), so that many machines share it.
	Relay         netip.Addr
	LinkSelection netip.Addr    // an address of the VLAN the machine's port is in (RFC 3527); optional
	CircuitID     string        // the switch's name for the port; optional
	DHCPTimeout   time.Duration // before the first repetition, doubled each time; default 1 s
	DHCPTries     int           // default 4, as PXE 2.1 has it

	TFTPServer   netip.AddrPort // default: port 69 of the server DHCP names
	ListenPacket func(network, address string) (net.PacketConn, error)
	DialContext  func(ctx context.Context, network, address string) (net.Conn, error)
	HTTP         *http.Client // default: one of its own over DialContext
	MaxFile      int64        // largest file fetched; default 4 GiB
	// OnStep is told what the machine does, as its console would; it must not block.
	OnStep func(Step)
}

// Validate names the first key that is wrong.
func (c *Config) Validate() error {
	switch {
	case c.MAC == (pxe.MAC{}):
		return fault.New(fault.Invalid, "bootclient.MAC is missing")
	case !c.DHCPServer.IsValid():
		return fault.New(fault.Invalid, "bootclient.DHCPServer is missing")
	case !c.Relay.Is4():
		return fault.New(fault.Invalid, "bootclient.Relay is not an IPv4 address")
	case c.LinkSelection.IsValid() && !c.LinkSelection.Is4():
		return fault.New(fault.Invalid, "bootclient.LinkSelection is not an IPv4 address")
	case len(c.CircuitID) > 64:
		return fault.New(fault.Invalid, "bootclient.CircuitID is longer than 64 bytes")
	}
	return nil
}

// Step is one thing the machine did.
type Step struct {
	At     time.Time
	What   string // dhcp, tftp, http, script, command, end
	Detail string // never a token
}

// End is how the machine left its firmware.
type End string

const (
	EndLocal     End = "local"      // on to the next boot device, whatever it holds
	EndKernel    End = "kernel"     // a kernel was started
	EndSAN       End = "san"        // an iSCSI disk was booted
	EndLocalDisk End = "local-disk" // told to boot the first disk: that of the HBA
	EndImage     End = "image"      // an EFI binary or disk image was started
)

// Outcome is what came of the boot. Address and the following are those of the last DHCPACK.
type Outcome struct {
	End    End
	Reason string // why EndLocal

	Address  netip.Prefix
	Gateway  netip.Addr
	DNS      []netip.Addr
	Hostname string

	Loader  pxe.Digest // content of the loader, if one was fetched
	Kernel  pxe.Digest // EndKernel
	Initrds []pxe.Digest
	Cmdline string
	Target  *ipxe.Target // EndSAN, with the initiator
	Login   ipxe.Login   // EndSAN
	Image   pxe.Digest   // EndImage

	// PhoneHome is where the booted system reports; from its command line, or from DHCP for a system
	// without one. It holds the token.
	PhoneHome string
}

// Run boots once, until the firmware is left. A failure that a machine would meet by going on to its
// next boot device is an Outcome; an error is a wrong Config or the end of ctx (the machine was
// switched off).
func Run(ctx context.Context, c Config) (Outcome, error) {
	if err := c.Validate(); err != nil {
		return Outcome{}, err
	}
	c.DHCPTimeout = or(c.DHCPTimeout, time.Second)
	c.DHCPTries = or(c.DHCPTries, 4)
	c.MaxFile = or(c.MaxFile, 4<<30)
	if c.ListenPacket == nil {
		c.ListenPacket = net.ListenPacket
	}
	if c.HTTP == nil {
		t := &http.Transport{DialContext: c.DialContext, MaxIdleConnsPerHost: 1, DisableCompression: true}
		defer t.CloseIdleConnections()
		c.HTTP = &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	}
	m := &machine{c: c}
	err := m.boot(ctx)
	if ctx.Err() != nil {
		return Outcome{}, ctx.Err()
	}
	if err != nil {
		m.out.End, m.out.Reason = EndLocal, err.Error()
	}
	m.step("end", string(m.out.End))
	return m.out, nil
}

func or[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

// machine is one boot under way.
type machine struct {
	c         Config
	out       Outcome
	initiator string // setting initiator-iqn
	login     ipxe.Login
	kernel    bool
	next      []byte // script that takes the present one's place
}

func (m *machine) step(what, detail string) {
	if m.c.OnStep != nil {
		m.c.OnStep(Step{At: time.Now(), What: what, Detail: detail})
	}
}

// boot is the firmware: it returns an error for everything that makes it go on to the next device.
func (m *machine) boot(ctx context.Context) error {
	if !m.c.IPXE {
		ack, err := m.configure(ctx, m.firmware())
		if err != nil {
			return err
		}
		next, err := m.load(ctx, ack)
		switch {
		case err != nil:
			return err
		case m.firmware() == pxe.ClassPXE && isGRUB(m.c.Arch, ack.file):
			return m.grub(ctx, ack)
		case !next:
			return nil
		}
	}
	ack, err := m.configure(ctx, pxe.ClassIPXE)
	if err != nil {
		return err
	}
	if ack.file == "" {
		return fault.New(fault.NotFound, "iPXE was given nothing to boot")
	}
	return m.follow(ctx, ack.file)
}

func (m *machine) firmware() pxe.Class {
	if m.c.Arch == pxe.ArchHTTPX64 || m.c.Arch == pxe.ArchHTTPARM64 {
		return pxe.ClassHTTP
	}
	return pxe.ClassPXE
}

// load fetches the boot file and reports whether it is iPXE; another one is started and ends the boot.
func (m *machine) load(ctx context.Context, ack ack) (isIPXE bool, err error) {
	switch {
	case ack.file == "":
		return false, fault.New(fault.NotFound, "no boot file in the DHCP answer")
	case m.firmware() == pxe.ClassHTTP && !ack.http:
		return false, fault.New(fault.NotFound, "DHCP answer does not echo HTTPClient")
	case m.firmware() == pxe.ClassHTTP:
		d, err := m.fetch(ctx, ack.file)
		if err != nil {
			return false, err
		}
		u, err := url.Parse(ack.file)
		if err != nil {
			return false, err
		}
		if path.Base(u.Path) != m.c.Arch.Loader() {
			m.out.End, m.out.Image, m.out.PhoneHome = EndImage, d, ack.phoneHome
			return false, nil
		}
		m.out.Loader = d
		return true, nil
	}
	m.out.Loader, err = m.digest(ctx, ack, ack.file)
	return true, err
}

// digest fetches a file by TFTP.
func (m *machine) digest(ctx context.Context, ack ack, name string) (pxe.Digest, error) {
	h := sha256.New()
	if err := m.tftp(ctx, ack, name, h, m.c.MaxFile); err != nil {
		return "", err
	}
	return pxe.DigestOf([32]byte(h.Sum(nil))), nil
}

func (m *machine) tftp(ctx context.Context, ack ack, name string, w io.Writer, limit int64) error {
	server := m.c.TFTPServer
	if !server.IsValid() {
		server = netip.AddrPortFrom(ack.next, 69)
	}
	// What Intel's and QEMU's firmware asks for.
	c := tftp.Client{ListenPacket: m.c.ListenPacket, Block: 1468, Window: 16, MaxSize: limit, Timeout: m.c.DHCPTimeout}
	if _, err := c.Get(ctx, server, name, w); err != nil {
		return err
	}
	m.step("tftp", path.Base(name))
	return nil
}

// fetch reads a file by HTTP to its end and returns its digest.
func (m *machine) fetch(ctx context.Context, u string) (pxe.Digest, error) {
	h := sha256.New()
	if err := m.get(ctx, u, h, m.c.MaxFile); err != nil {
		return "", err
	}
	return pxe.DigestOf([32]byte(h.Sum(nil))), nil
}

func (m *machine) get(ctx context.Context, u string, w io.Writer, limit int64) error {
	what := tail(u)
	if err := ipxe.CheckURL(u); err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	if err != nil {
		return fault.New(fault.Invalid, "fetch "+what)
	}
	resp, err := m.c.HTTP.Do(req)
	if err != nil {
		return &fault.Error{Kind: fault.Unreachable, What: "fetch " + what, Err: withoutURL(err)}
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fault.Newf(fault.NotFound, "fetch %s: %s", what, resp.Status)
	}
	n, err := io.Copy(w, io.LimitReader(resp.Body, limit+1))
	switch {
	case err != nil:
		return &fault.Error{Kind: fault.Unreachable, What: "fetch " + what, Err: withoutURL(err)}
	case n > limit:
		return fault.Newf(fault.Invalid, "fetch %s: more than %d bytes", what, limit)
	}
	m.step("http", what)
	return nil
}

// ack is what the machine takes from a DHCPACK.
type ack struct {
	file, phoneHome string
	next            netip.Addr
	http            bool
}

func (m *machine) take(p *dhcp.Packet) ack {
	bits := 32
	if v := p.Option(dhcp.OptSubnetMask); len(v) == 4 {
		bits, _ = net.IPMask(v).Size()
	}
	m.out.Address = netip.PrefixFrom(p.YIAddr, bits)
	m.out.Gateway = p.Addr(dhcp.OptRouter)
	m.out.Hostname = string(p.Option(dhcp.OptHostName))
	m.out.DNS = nil
	for v := p.Option(dhcp.OptDNS); len(v) >= 4; v = v[4:] {
		m.out.DNS = append(m.out.DNS, netip.AddrFrom4([4]byte(v[:4])))
	}
	return ack{file: p.BootFile(), phoneHome: string(p.Option(dhcp.OptPhoneHome)), next: p.SIAddr,
		http: string(p.Option(dhcp.OptClass)) == "HTTPClient"}
}
