package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/internal/pki"
	"rerack.dev/rerack/orchestrator/api"
	"rerack.dev/rerack/orchestrator/bootplane"
	"rerack.dev/rerack/orchestrator/capture"
	"rerack.dev/rerack/orchestrator/monitor"
	"rerack.dev/rerack/orchestrator/probe"
	"rerack.dev/rerack/orchestrator/recovery"
	"rerack.dev/rerack/orchestrator/revision"
	"rerack.dev/rerack/orchestrator/secrets"
	"rerack.dev/rerack/orchestrator/store"
	"rerack.dev/rerack/orchestrator/store/consul"
	"rerack.dev/rerack/orchestrator/store/embedded"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/bootserver"
	"rerack.dev/rerack/pxe/dhcp"
	"rerack.dev/rerack/pxe/images"
	"rerack.dev/rerack/pxe/ipxe"
	"rerack.dev/rerack/pxe/loaders"
	"rerack.dev/rerack/workflows"
	"rerack.dev/rerack/workflows/engine"
	"rerack.dev/rerack/workflows/gateway"
)

// controlPlane is the common name by which agents of hosts know their only caller.
const controlPlane = "rerack"

// serverConfig is everything the server is told.
type serverConfig struct {
	dataDir, store, temporal, namespace string
	listen                              string
	secretsFile, imagesDir              string
	loaders                             []string
	deviceCA                            string
	imageKeys                           []string
	dhcp, relays, agentHosts            []string
	dhcpRelay                           string
	tftp, bootHTTP, bootURL             string
	bootAddress                         string
	logLevel                            string
}

func serverCommand(g *global) *cobra.Command {
	var cfg serverConfig
	c := &cobra.Command{Use: "server", Short: "Run the control plane", GroupID: "service", Args: cobra.NoArgs,
		Long: `Run the control plane. Without flags it keeps everything under --data-dir: an embedded store, an embedded
workflow engine, keys and images. It listens on loopback and serves no DHCP until a link is named.`,
		Example: `  rerack server --data-dir /var/lib/rerack --dhcp eth1=10.0.0.1/24 --boot-http 10.0.0.1:8080 --tftp 10.0.0.1:69
  rerack server --store consul://127.0.0.1:8500/rerack --temporal temporal:7233`,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg.dataDir = g.dataDir
			log, err := logger(c, cfg.logLevel)
			if err != nil {
				return err
			}
			return serve(c.Context(), cfg, log)
		}}
	f := c.Flags()
	f.StringVar(&cfg.listen, "listen", "127.0.0.1:7070", "address of the API")
	f.StringVar(&cfg.store, "store", "", "consul://host:port/prefix; default: embedded under --data-dir")
	f.StringVar(&cfg.temporal, "temporal", "", "host:port of a Temporal cluster; default: embedded under --data-dir")
	f.StringVar(&cfg.namespace, "temporal-namespace", engine.Namespace, "namespace on an external Temporal cluster")
	f.StringVar(&cfg.secretsFile, "secrets", "", "file of device credentials (default <data-dir>/secrets.json)")
	f.StringVar(&cfg.imagesDir, "images", "", "store of boot files (default <data-dir>/images)")
	f.StringSliceVar(&cfg.imageKeys, "image-key", nil, "file of a minisign public key; with it, only images that are signed with one of these are taken and served")
	f.StringSliceVar(&cfg.loaders, "loaders", loaders.Folders("/"), "folders with boot loaders: undionly.kpxe, snponly.efi; for Secure Boot shimx64.efi and grubx64.efi; for arm64 grubaa64.efi; as Debian's packages call them or by these names")
	f.StringVar(&cfg.deviceCA, "device-ca", "", "PEM file of the authorities that sign device certificates (default: the system's)")
	f.StringSliceVar(&cfg.dhcp, "dhcp", nil, "serve DHCP on a link: interface=address/prefix")
	f.StringVar(&cfg.dhcpRelay, "dhcp-relay-listen", "", "serve relayed DHCP only, on this address:port")
	f.StringSliceVar(&cfg.relays, "dhcp-relay-from", nil, "networks whose relays are answered")
	f.StringVar(&cfg.tftp, "tftp", "", "address:port of TFTP; empty: none")
	f.StringVar(&cfg.bootHTTP, "boot-http", "127.0.0.1:7080", "address:port of network boot over HTTP")
	f.StringVar(&cfg.bootURL, "boot-url", "", "how machines reach it (default http://<boot-http>)")
	f.StringVar(&cfg.bootAddress, "boot-address", "", "IPv4 address at which machines find relayed DHCP and TFTP, when a router translates it (default: those listened on)")
	f.StringSliceVar(&cfg.agentHosts, "agent-hosts", nil, "networks where agents of hosts may listen besides the host's own address")
	f.StringVar(&cfg.logLevel, "log-level", "info", "debug, info, warn or error")
	return c
}

func logger(c *cobra.Command, level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, &fault.Error{Kind: fault.Invalid, What: "--log-level " + level, Next: "use debug, info, warn or error"}
	}
	return slog.New(slog.NewTextHandler(c.ErrOrStderr(), &slog.HandlerOptions{Level: l})), nil
}

func (c *serverConfig) fill() {
	def := func(v *string, otherwise string) {
		if *v == "" {
			*v = otherwise
		}
	}
	def(&c.secretsFile, filepath.Join(c.dataDir, "secrets.json"))
	def(&c.imagesDir, filepath.Join(c.dataDir, "images"))
}

// serve wires the parts and runs them until ctx ends or one fails.
func serve(ctx context.Context, cfg serverConfig, log *slog.Logger) error {
	cfg.fill()
	socks, err := openSockets(ctx, cfg)
	if err != nil {
		return err
	}
	defer socks.close()
	if cfg.bootURL == "" {
		cfg.bootURL = socks.bootURL(cfg.bootHTTP)
	}
	if err := os.MkdirAll(cfg.dataDir, 0o700); err != nil {
		return &fault.Error{Kind: fault.Invalid, What: "data directory", Err: err, Next: "choose another --data-dir"}
	}
	token, err := keyFile(filepath.Join(cfg.dataDir, "admin.token"))
	if err != nil {
		return err
	}
	st, err := openStore(ctx, cfg, log)
	if err != nil {
		return err
	}
	defer func() { _ = st.Close() }()

	address, stopEngine, err := openEngine(ctx, cfg, log)
	if err != nil {
		return err
	}
	defer stopEngine()
	wf, err := workflows.Connect(ctx, address, cfg.namespace, log)
	if err != nil {
		return err
	}
	defer wf.Close()

	ca, err := pki.Open(filepath.Join(cfg.dataDir, "pki"))
	if err != nil {
		return err
	}
	revisions := &revision.Log{Store: st, Now: time.Now}
	gw, err := openGateway(cfg, ca, revisions.Topology, log)
	if err != nil {
		return err
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_ = gw.Close(closing)
	}()

	if err := revisions.Refresh(ctx); err != nil {
		return err
	}
	keys, err := images.ReadKeys(cfg.imageKeys)
	if err != nil {
		return err
	}
	files, err := images.Open(cfg.imagesDir, images.Options{Keys: keys})
	if err != nil {
		return err
	}
	defer func() { _ = files.Close() }()
	mon := monitor.New(monitor.Config{Devices: gw, Topology: revisions.Topology, Now: time.Now, Logger: log})
	acts := &workflows.Activities{Store: st, CheckImage: checkImage(files), Topology: revisions.Topology, Revisions: revisions, Devices: gw, Observer: mon,
		Probe: probe.Prober{}, Now: time.Now, Log: log}
	rec := &recovery.Service{Store: st, Topology: revisions.Topology, Engine: wf, Judge: mon.Judge, PowerOf: mon.PowerOf, Now: time.Now, Log: log}
	plane, boot, err := openBootPlane(ctx, cfg, socks, st, wf, ca, files, secrets.Open(cfg.secretsFile), log)
	if err != nil {
		return err
	}
	srv := &api.Server{Store: st, Revisions: revisions, Recovery: rec, Monitor: mon, Plan: acts.PlacementInput, Images: files, CheckCapture: acts.CheckCapture,
		Token: hex.EncodeToString(token), Now: time.Now, Log: log}

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return revisions.Follow(ctx) })
	g.Go(func() error { return wf.Work(ctx, acts) })
	g.Go(func() error { return plane.Follow(ctx) })
	g.Go(func() error { return boot.Run(ctx) })
	g.Go(func() error { mon.Run(ctx, rec.Detect); return nil })
	g.Go(func() error { return serveAPI(ctx, socks.api, srv.Handler()) })
	g.Go(func() error { return resume(ctx, rec, log) })
	log.Info("serving", "api", "http://"+socks.api.Addr().String(), "boot", cfg.bootURL, "machines", len(revisions.Topology().Machines))
	err = g.Wait()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// checkImage opens a file of the store, which reads and compares it unless that was done a short while ago.
func checkImage(files *images.Store) func(context.Context, string) error {
	return func(ctx context.Context, digest string) error {
		read := make(chan error, 1)
		go func() { // it goes on when nobody waits any more: the next one who asks finds it done
			f, err := files.Open(pxe.Digest(digest))
			if err == nil {
				err = f.Close()
			}
			read <- err
		}()
		select {
		case err := <-read:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// resume repeats until every accepted run is with the engine: right after its start it may not be ready.
func resume(ctx context.Context, rec *recovery.Service, log *slog.Logger) error {
	for {
		err := rec.Resume(ctx)
		if err == nil || ctx.Err() != nil {
			return nil
		}
		log.Warn("accepted runs are not with the workflow engine yet", "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

func serveAPI(ctx context.Context, l net.Listener, h http.Handler) error {
	s := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute,
		BaseContext: func(net.Listener) context.Context { return ctx }}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func openStore(ctx context.Context, cfg serverConfig, log *slog.Logger) (store.Store, error) {
	if cfg.store != "" {
		c, err := consul.ParseURL(cfg.store)
		if err != nil {
			return nil, err
		}
		c.Logger = log
		return consul.Open(ctx, c)
	}
	return embedded.Open(embedded.Config{Path: filepath.Join(cfg.dataDir, "state.db"), Logger: log})
}

func openEngine(ctx context.Context, cfg serverConfig, log *slog.Logger) (address string, stop func(), err error) {
	if cfg.temporal != "" {
		return cfg.temporal, func() {}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	e, err := engine.Start(ctx, engine.Config{Path: filepath.Join(cfg.dataDir, "engine.db"), Logger: log})
	if err != nil {
		return "", nil, err
	}
	return e.Address(), func() { _ = e.Stop() }, nil
}

// keyFile reads 32 random bytes, kept in hex, or makes them.
func keyFile(path string) ([]byte, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		key := make([]byte, 32)
		_, _ = rand.Read(key) // crypto/rand does not fail on a supported system
		raw = []byte(hex.EncodeToString(key) + "\n")
		tmp := path + ".new"
		if err = os.WriteFile(tmp, raw, 0o600); err == nil {
			err = os.Rename(tmp, path)
		}
	}
	if err != nil {
		return nil, &fault.Error{Kind: fault.Internal, Where: path, What: "key file", Err: err}
	}
	key, err := hex.DecodeString(strings.TrimSpace(string(raw)))
	if err != nil || len(key) < 32 {
		return nil, &fault.Error{Kind: fault.Invalid, Where: path, What: "key file is damaged", Next: "remove it to make a new one"}
	}
	return key, nil
}

func openBootPlane(ctx context.Context, cfg serverConfig, socks *sockets, st store.Store, wf *workflows.Client, ca *pki.CA, files *images.Store, creds *secrets.File, log *slog.Logger) (*bootplane.Plane, *bootserver.Server, error) {
	key, err := keyFile(filepath.Join(cfg.dataDir, "boot.key"))
	if err != nil {
		return nil, nil, err
	}
	table, err := pxe.NewTable(key)
	if err != nil {
		return nil, nil, err
	}
	imported, err := importLoaders(ctx, cfg.loaders, files, log)
	if err != nil {
		return nil, nil, err
	}
	plane := &bootplane.Plane{Store: st, Table: table, Signals: wf, CA: ca, Now: time.Now, Log: log}
	c := bootserver.Config{Table: table, Images: files, Loaders: imported, BaseURL: cfg.bootURL, Sink: plane, Joiner: plane, Logger: log,
		HTTPPerSource: 4096, TFTPPerSource: 1024, OnRogue: func(r dhcp.Rogue) {
			log.Error("foreign DHCP server on a boot link", "server", r.Server, "listener", r.Listener, "seen", r.Evidence)
		}}
	c.CHAP = func(ctx context.Context, name string) (ipxe.Login, error) {
		l, err := creds.Resolve(ctx, name)
		return ipxe.Login{User: l.User, Secret: l.Password}, err
	}
	c.Captor = &capture.Desk{Store: st, CHAP: c.CHAP, Now: time.Now}
	if c.AgentHosts, err = prefixes("--agent-hosts", cfg.agentHosts); err != nil {
		return nil, nil, err
	}
	c.DHCP, c.TFTPConn, c.HTTPListener = socks.dhcp, socks.tftp, socks.boot
	if cfg.bootAddress != "" {
		if c.NextServer, err = netip.ParseAddr(cfg.bootAddress); err != nil {
			return nil, nil, &fault.Error{Kind: fault.Invalid, What: "--boot-address", Err: err}
		}
	}
	srv, err := bootserver.New(c)
	return plane, srv, err
}

func openGateway(cfg serverConfig, ca *pki.CA, now func() *topology.Topology, log *slog.Logger) (*gateway.Gateway, error) {
	creds := secrets.Open(cfg.secretsFile)
	var deviceCA []byte
	if cfg.deviceCA != "" {
		var err error
		if deviceCA, err = os.ReadFile(cfg.deviceCA); err != nil {
			return nil, &fault.Error{Kind: fault.Invalid, What: "--device-ca", Err: err}
		}
	}
	cert, err := ca.Client(controlPlane)
	if err != nil {
		return nil, err
	}
	c, err := drivers(creds, string(deviceCA), log)
	if err != nil {
		return nil, err
	}
	c.AgentCert, c.AgentCA, c.DeviceCA = cert, ca.Pool(), string(deviceCA)
	c.AgentDial = func(machine string) (func(ctx context.Context, network, address string) (net.Conn, error), error) {
		t := now()
		return probe.Dialer(t.Sites[t.Racks[t.Machines[machine].Spec.Rack].Spec.Site].Spec.AgentProxy)
	}
	return gateway.New(c), nil
}
