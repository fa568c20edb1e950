// Package engine embeds a Temporal server in this process: one SQLite file, loopback only. It is for
// one machine with nothing to install; an external cluster takes its place by address.
package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"go.temporal.io/server/common/authorization"
	"go.temporal.io/server/common/cluster"
	"go.temporal.io/server/common/config"
	"go.temporal.io/server/common/dynamicconfig"
	"go.temporal.io/server/common/membership/static"
	"go.temporal.io/server/common/persistence/sql/sqlplugin/sqlite"
	"go.temporal.io/server/common/primitives"
	sqliteschema "go.temporal.io/server/schema/sqlite"
	"go.temporal.io/server/temporal"

	"rerack.dev/rerack/internal/fault"
)

// Namespace is the one that Rerack's workflows live in.
const Namespace = "rerack"

const (
	loopback = "127.0.0.1"
	shards   = 4
)

// Config of the embedded engine.
type Config struct {
	Path   string       // of the database file, created if missing
	Logger *slog.Logger // the engine logs errors only; nil discards
}

// Validate names what is missing.
func (c Config) Validate() error {
	if c.Path == "" {
		return fault.New(fault.Invalid, "engine: Path is empty")
	}
	return nil
}

// Engine is a running embedded server.
type Engine struct {
	server  temporal.Server
	address string
}

// Start starts the engine and returns when its frontend accepts connections. It listens on loopback
// without authentication: whoever has an account on this machine can reach it (see the threat model).
func Start(ctx context.Context, c Config) (*Engine, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if err := create(c.Path); err != nil {
		return nil, &fault.Error{Kind: fault.Internal, Where: c.Path, What: "create the engine's database", Err: err,
			Next: "check free space and rights of the data directory"}
	}
	ns, err := sqliteschema.NewNamespaceConfig("active", Namespace, false, nil)
	if err != nil {
		return nil, err
	}
	if err := sqliteschema.CreateNamespaces(database(c.Path), ns); err != nil {
		return nil, &fault.Error{Kind: fault.Internal, Where: c.Path, What: "open the engine's database", Err: err}
	}
	conf, hosts, err := configuration(c.Path)
	if err != nil {
		return nil, err
	}
	server, err := temporal.NewServer(
		temporal.WithConfig(conf),
		temporal.ForServices(temporal.DefaultServices),
		temporal.WithStaticHosts(hosts),
		temporal.WithLogger(logger{c.Logger}),
		temporal.WithAuthorizer(authorization.NewNoopAuthorizer()),
		temporal.WithClaimMapper(func(*config.Config) authorization.ClaimMapper { return authorization.NewNoopClaimMapper() }),
		temporal.WithDynamicConfigClient(dynamicconfig.StaticClient{
			dynamicconfig.HistoryCacheHostLevelMaxSize.Key(): 4096,
		}),
	)
	if err != nil {
		return nil, &fault.Error{Kind: fault.Internal, What: "configure the workflow engine", Err: err}
	}
	if err := server.Start(); err != nil {
		return nil, &fault.Error{Kind: fault.Internal, What: "start the workflow engine", Err: err}
	}
	e := &Engine{server: server, address: conf.PublicClient.HostPort}
	if err := e.reachable(ctx); err != nil {
		return nil, errors.Join(err, e.Stop())
	}
	return e, nil
}

// Address is the frontend's host:port.
func (e *Engine) Address() string { return e.address }

// Stop ends the engine. What is under way goes on after the next start.
func (e *Engine) Stop() error { return e.server.Stop() }

func (e *Engine) reachable(ctx context.Context) error {
	for {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "tcp", e.address)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-ctx.Done():
			return &fault.Error{Kind: fault.Timeout, Where: e.address, What: "wait for the workflow engine", Err: err}
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// create makes the schema in a file beside and renames it, so that a crash leaves none or a whole one.
func create(path string) error {
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	tmp := path + ".new"
	for _, f := range []string{tmp, tmp + "-wal", tmp + "-shm"} {
		if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	db := database(tmp)
	db.ConnectAttributes["journal_mode"] = "delete" // one file to rename
	if err := sqliteschema.SetupSchema(db); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// database keeps full durability: an accepted request must survive a power loss.
func database(path string) *config.SQL {
	return &config.SQL{PluginName: sqlite.PluginName, DatabaseName: path, ConnectAttributes: map[string]string{
		"mode": "rwc", "journal_mode": "wal", "busy_timeout": "10000", "synchronous": "full"}}
}

func configuration(path string) (*config.Config, map[primitives.ServiceName]static.Hosts, error) {
	services := []primitives.ServiceName{primitives.FrontendService, primitives.HistoryService,
		primitives.MatchingService, primitives.WorkerService}
	ports, err := freePorts(len(services))
	if err != nil {
		return nil, nil, &fault.Error{Kind: fault.Internal, What: "find free ports for the engine", Err: err}
	}
	c := &config.Config{Services: map[string]config.Service{}}
	hosts := map[primitives.ServiceName]static.Hosts{}
	for i, s := range services {
		c.Services[string(s)] = config.Service{RPC: config.RPC{GRPCPort: ports[i], BindOnIP: loopback}}
		hosts[s] = static.SingleLocalHost(fmt.Sprintf("%s:%d", loopback, ports[i]))
	}
	frontend := fmt.Sprintf("%s:%d", loopback, ports[0])
	c.Global.Membership = config.Membership{MaxJoinDuration: 30 * time.Second, BroadcastAddress: loopback}
	store := config.DataStore{SQL: database(path)}
	c.Persistence = config.Persistence{DefaultStore: "default", VisibilityStore: "visibility", NumHistoryShards: shards,
		DataStores: map[string]config.DataStore{"default": store, "visibility": store}}
	c.ClusterMetadata = &cluster.Config{FailoverVersionIncrement: 10, MasterClusterName: "active", CurrentClusterName: "active",
		ClusterInformation: map[string]cluster.ClusterInformation{
			"active": {Enabled: true, InitialFailoverVersion: 1, RPCAddress: frontend}}}
	c.DCRedirectionPolicy.Policy = "noop"
	c.Archival = config.Archival{History: config.HistoryArchival{State: "disabled"}, Visibility: config.VisibilityArchival{State: "disabled"}}
	c.NamespaceDefaults.Archival.History.State = "disabled"
	c.NamespaceDefaults.Archival.Visibility.State = "disabled"
	c.PublicClient.HostPort = frontend
	return c, hosts, nil
}

// freePorts asks the kernel for n different free ports. They are held open together so that none is
// given twice.
func freePorts(n int) ([]int, error) {
	var ports []int
	for range n {
		l, err := net.Listen("tcp", loopback+":0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}
