// Package bootserver puts the boot plane together: DHCP, TFTP and HTTP over one table of intents. It
// is given its sockets, so the same server runs on the kernel's network and on one in user space.
package bootserver

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/netip"

	"golang.org/x/sync/errgroup"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/dhcp"
	"rerack.dev/rerack/pxe/httpboot"
	"rerack.dev/rerack/pxe/images"
	"rerack.dev/rerack/pxe/ipxe"
	"rerack.dev/rerack/pxe/tftp"
)

// Config of a Server.
type Config struct {
	Table  *pxe.Table
	Images *images.Store
	// Loaders are boot loaders in Images, by the names of pxe.Arch: iPXE, shim and GRUB. Machines whose
	// firmware is iPXE already need none.
	Loaders map[string]pxe.Digest
	// BaseURL is how machines reach HTTP: http://10.0.0.1:8080.
	BaseURL string
	Sink    pxe.Milestones
	Joiner  pxe.Joiner      // optional
	Captor  httpboot.Captor // optional

	DHCP        []dhcp.Listener // optional: no DHCP without a named link
	Mode        dhcp.Mode
	NextServer  netip.Addr   // TFTP server as machines see it; default the DHCP listener's ServerID
	Friends     []netip.Addr // other DHCP servers that may serve on our links
	SilentLocal bool         // say nothing to firmware of machines that no plan boots
	DHCPQueue   int          // see dhcp.Config
	DHCPWorkers int
	OnRogue     func(dhcp.Rogue)
	OnConflict  func(dhcp.Conflict)

	TFTPConn      net.PacketConn                                        // optional
	ListenPacket  func(network, address string) (net.PacketConn, error) // of TFTP transfers; default net.ListenPacket
	TFTPPerSource int                                                   // transfers at once to one address; default 16
	OnSent        func(name string, to netip.AddrPort, size int64)      // see tftp.Config
	HTTPListener  net.Listener
	HTTPS         *tls.Config // optional
	HTTPConns     int         // open connections; default 4096
	HTTPPerSource int         // open connections of one address; default 64
	CheckSource   bool        // see httpboot.Config
	AgentHosts    []netip.Prefix
	CHAP          func(ctx context.Context, name string) (ipxe.Login, error) // see httpboot.Config

	QueuedMilestones int // default 4096
	Logger           *slog.Logger
}

// Server is the boot plane of one place.
type Server struct {
	cfg      Config
	reporter *pxe.Reporter
	dhcp     *dhcp.Server
	tftp     *tftp.Server
	http     *httpboot.Handler
}

// New checks the configuration, the loaders included, and makes a server. It does not serve yet.
func New(c Config) (*Server, error) {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.QueuedMilestones == 0 {
		c.QueuedMilestones = 4096
	}
	if c.HTTPListener == nil {
		return nil, fault.New(fault.Invalid, "bootserver.HTTPListener is missing")
	}
	s := &Server{cfg: c}
	var err error
	if s.reporter, err = pxe.NewReporter(c.Sink, c.QueuedMilestones, c.Logger); err != nil {
		return nil, err
	}
	decider := &pxe.Decider{Table: c.Table, BaseURL: c.BaseURL, SilentLocal: c.SilentLocal}
	if s.http, err = httpboot.New(httpboot.Config{Decider: decider, Images: c.Images, Loaders: c.Loaders, Sink: c.Sink,
		Reporter: s.reporter, Joiner: c.Joiner, Captor: c.Captor, CheckSource: c.CheckSource, CHAP: c.CHAP, AgentHosts: c.AgentHosts, Logger: c.Logger}); err != nil {
		return nil, err
	}
	for name, d := range c.Loaders {
		f, err := c.Images.Open(d)
		if err != nil {
			return nil, fault.Wrap(err, "open loader", name)
		}
		f.Close()
	}
	if len(c.DHCP) > 0 {
		if s.dhcp, err = dhcp.New(dhcp.Config{Decider: decider, Reporter: s.reporter, Listeners: c.DHCP, Mode: c.Mode,
			NextServer: c.NextServer, Queue: c.DHCPQueue, Workers: c.DHCPWorkers, Friends: c.Friends, OnRogue: c.OnRogue,
			OnConflict: c.OnConflict, Logger: c.Logger}); err != nil {
			return nil, err
		}
	}
	if c.TFTPConn != nil {
		f := &files{cfg: &s.cfg, decider: decider, reporter: s.reporter}
		if s.tftp, err = tftp.New(tftp.Config{Conn: c.TFTPConn, Files: f.open, ListenPacket: c.ListenPacket,
			PerSource: c.TFTPPerSource, OnSent: f.sent, Logger: c.Logger}); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Run serves until ctx ends (nil) or one of the parts fails, which ends the others. It closes the
// sockets it was given.
func (s *Server) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.reporter.Run(ctx) })
	if s.dhcp != nil {
		g.Go(func() error { return s.dhcp.Run(ctx) })
	}
	if s.tftp != nil {
		g.Go(func() error { return s.tftp.Run(ctx) })
	}
	g.Go(func() error {
		return httpboot.Serve(ctx, s.cfg.HTTPListener, s.http, httpboot.Options{Conns: s.cfg.HTTPConns,
			ConnsPerSource: s.cfg.HTTPPerSource, TLS: s.cfg.HTTPS, Logger: s.cfg.Logger})
	})
	return g.Wait()
}

// Stats of the parts.
type Stats struct {
	DHCP              dhcp.Stats
	TFTP              tftp.Stats
	MilestonesDropped uint64 // because the sink was slow
	MilestonesFailed  uint64 // refused by the sink
}

// Stats returns the present counters.
func (s *Server) Stats() Stats {
	var st Stats
	if s.dhcp != nil {
		st.DHCP = s.dhcp.Stats()
	}
	if s.tftp != nil {
		st.TFTP = s.tftp.Stats()
	}
	st.MilestonesDropped, st.MilestonesFailed = s.reporter.Lost()
	return st
}
