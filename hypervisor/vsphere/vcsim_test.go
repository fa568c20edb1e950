package vsphere_test

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"rerack.dev/rerack/hypervisor/driver"
	"rerack.dev/rerack/hypervisor/hypervisortest"
	"rerack.dev/rerack/hypervisor/vsphere"
	"rerack.dev/rerack/internal/pki"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

const password = "canary-of-the-vcenter"

// center is VMware's simulator behind HTTPS, whose calls can be broken.
type center struct {
	model *simulator.Model
	srv   *httptest.Server
	host  string
	admin *govmomi.Client

	mu     sync.Mutex
	n      int // calls until the one to break; 0: none
	how    hypervisortest.Failure
	starts int
}

// newCenter has one host with port groups for the contract's VLANs and LUNs for its volumes.
func newCenter(t *testing.T, model *simulator.Model) *center {
	t.Helper()
	c := &center{model: model}
	model.Machine, model.Portgroup = 0, 0
	if model.Cluster > 0 {
		model.Cluster, model.ClusterHost, model.Host = 0, 0, 2
	}
	check(t, model.Create())
	t.Cleanup(model.Remove)
	model.Service.TLS = new(tls.Config)
	t.Cleanup(model.Service.NewServer().Close) // it sets the paths up; ours is the one that is talked to
	for _, x := range model.Map().All("HostSystem") {
		h := x.(*simulator.HostSystem)
		hw := *h.Hardware
		hw.CpuInfo.NumCpuThreads, hw.MemorySize = 8, 16<<30
		h.Hardware = &hw
	}
	c.srv = httptest.NewTLSServer(http.HandlerFunc(c.serve))
	t.Cleanup(c.srv.Close)
	ctx := t.Context()
	u := *must(t)(c.srv.URL)
	u.Path, u.User = "/sdk", simulator.DefaultLogin
	var err error
	c.admin, err = govmomi.NewClient(ctx, &u, true)
	check(t, err)
	c.prepare(t)
	model.Map().AddHandler(counter{c})
	return c
}

// prepare gives the first host what the contract wants of it.
func (c *center) prepare(t *testing.T) {
	t.Helper()
	ctx := t.Context()
	f := find.NewFinder(c.admin.Client)
	dc, err := f.DefaultDatacenter(ctx)
	check(t, err)
	f.SetDatacenter(dc)
	hosts, err := f.HostSystemList(ctx, "*")
	check(t, err)
	c.host = hosts[0].Name()
	net, err := hosts[0].ConfigManager().NetworkSystem(ctx)
	check(t, err)
	for _, vlan := range []int32{1, 120, 121, 4094} {
		check(t, net.AddPortGroup(ctx, types.HostPortGroupSpec{Name: fmt.Sprintf("vlan-%d", vlan), VlanId: vlan, VswitchName: "vSwitch0"}))
	}
	store, err := hosts[0].ConfigManager().StorageSystem(ctx)
	check(t, err)
	sys := c.model.Map().Get(store.Reference()).(*simulator.HostStorageSystem)
	info := &types.HostStorageDeviceInfo{ScsiTopology: &types.HostScsiTopology{}}
	adapter := types.HostScsiTopologyInterface{Key: "iscsi"}
	see := func(transport types.BaseHostTargetTransport, luns ...int32) {
		target := types.HostScsiTopologyTarget{Transport: transport}
		for _, n := range luns {
			key := fmt.Sprintf("disk-%d-%d", len(adapter.Target), n)
			d := &types.HostScsiDisk{Capacity: types.HostDiskDimensionsLba{BlockSize: 512, Block: 2048}}
			d.Key, d.Uuid, d.DeviceName = key, "02000000"+key, "/vmfs/devices/disks/"+key
			info.ScsiLun = append(info.ScsiLun, d)
			target.Lun = append(target.Lun, types.HostScsiTopologyLun{Lun: n, ScsiLun: key})
		}
		adapter.Target = append(adapter.Target, target)
	}
	see(&types.HostInternetScsiTargetTransport{IScsiName: "iqn.2026-01.org.example:db1"}, 0, 1)
	see(&types.HostFibreChannelTargetTransport{PortWorldWideName: 0x500601603b2011aa}, 0, 16383)
	info.ScsiTopology.Adapter = []types.HostScsiTopologyInterface{adapter}
	sys.StorageDeviceInfo = info
}

func (c *center) serve(w http.ResponseWriter, r *http.Request) {
	rec := httptest.NewRecorder()
	switch c.next() {
	case hypervisortest.Refused:
		w.WriteHeader(http.StatusInternalServerError)
		_, _ = w.Write([]byte(`<?xml version="1.0"?><soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/"><soapenv:Body><soapenv:Fault>` +
			`<faultcode>ServerFaultCode</faultcode><faultstring>not today</faultstring></soapenv:Fault></soapenv:Body></soapenv:Envelope>`))
	case hypervisortest.Dropped:
		panic(http.ErrAbortHandler)
	case hypervisortest.Lost:
		c.model.Service.ServeSDK(rec, r)
		panic(http.ErrAbortHandler)
	default:
		c.model.Service.ServeSDK(w, r)
	}
}

func (c *center) next() hypervisortest.Failure {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == 0 {
		return ""
	}
	if c.n--; c.n > 0 {
		return ""
	}
	return c.how
}

func (c *center) fail(n int, how hypervisortest.Failure) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n, c.how = n, how
}

func (c *center) heal() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	broke := c.n == 0
	c.n = 0
	return broke
}

// config is for a driver of the first host, which trusts the server by its fingerprint.
func (c *center) config(t testing.TB) vsphere.Config {
	t.Helper()
	print := sha256.Sum256(c.srv.Certificate().Raw)
	trust, err := pki.Trust("", hex.EncodeToString(print[:]))
	check(t, err)
	return vsphere.Config{Machine: "b01", URL: c.srv.URL, Host: c.host, Datastore: "LocalDS_0", TLS: trust, ChangeTimeout: 20 * time.Second,
		Login: func(context.Context) (string, string, error) { return "rerack", password, nil }}
}

func open(t testing.TB, c vsphere.Config) *vsphere.Host {
	t.Helper()
	h, err := vsphere.New(c)
	check(t, err)
	return h
}

// running lists the VMs that are powered on, as another client sees them.
func (c *center) running(t testing.TB) []string {
	ctx := context.Background()
	names := []string{}
	f := find.NewFinder(c.admin.Client)
	all, err := f.VirtualMachineList(ctx, "/...")
	if err != nil && !strings.Contains(err.Error(), "not found") {
		t.Error(err)
	}
	for _, vm := range all {
		if state, err := vm.PowerState(ctx); err == nil && state == types.VirtualMachinePowerStatePoweredOn {
			names = append(names, vm.Name())
		}
	}
	slices.Sort(names)
	return names
}

// counter is told of every change in the simulator.
type counter struct{ c *center }

// Reference implements simulator.RegisterObject.
func (counter) Reference() types.ManagedObjectReference {
	return types.ManagedObjectReference{Type: "Counter", Value: "counter"}
}

// PutObject implements simulator.RegisterObject.
func (counter) PutObject(*simulator.Context, mo.Reference) {}

// RemoveObject implements simulator.RegisterObject.
func (counter) RemoveObject(*simulator.Context, types.ManagedObjectReference) {}

// UpdateObject implements simulator.RegisterObject.
func (n counter) UpdateObject(_ *simulator.Context, _ mo.Reference, changes []types.PropertyChange) {
	for _, x := range changes {
		if x.Name == "runtime.powerState" && x.Val == types.VirtualMachinePowerStatePoweredOn {
			n.c.mu.Lock()
			n.c.starts++
			n.c.mu.Unlock()
		}
	}
}

// countStarts counts how often a VM was powered on.
func (c *center) countStarts() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.starts
}

// foreign makes a VM as other tools do.
func (c *center) foreign(t *testing.T, s driver.Spec, on bool) {
	t.Helper()
	ctx := t.Context()
	f := find.NewFinder(c.admin.Client)
	dc, err := f.DefaultDatacenter(ctx)
	check(t, err)
	f.SetDatacenter(dc)
	folders, err := dc.Folders(ctx)
	check(t, err)
	host, err := f.HostSystem(ctx, c.host)
	check(t, err)
	pool, err := host.ResourcePool(ctx)
	check(t, err)
	card := &types.VirtualE1000{}
	card.Key, card.AddressType, card.MacAddress = -1, "manual", s.NICs[0].MAC
	card.Backing = &types.VirtualEthernetCardNetworkBackingInfo{VirtualDeviceDeviceBackingInfo: types.VirtualDeviceDeviceBackingInfo{DeviceName: "vlan-120"}}
	task, err := folders.VmFolder.CreateVM(ctx, types.VirtualMachineConfigSpec{Name: s.Name, Uuid: s.UUID, NumCPUs: int32(s.CPUs), MemoryMB: min(s.MemoryMiB, 1<<30),
		GuestId: "otherGuest64", Firmware: "efi", Files: &types.VirtualMachineFileInfo{VmPathName: "[LocalDS_0]"},
		DeviceChange: []types.BaseVirtualDeviceConfigSpec{&types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationAdd, Device: card}}}, pool, host)
	check(t, err)
	info, err := task.WaitForResult(ctx)
	check(t, err)
	if on {
		task, err := object.NewVirtualMachine(c.admin.Client, info.Result.(types.ManagedObjectReference)).PowerOn(ctx)
		check(t, err)
		check(t, task.Wait(ctx))
	}
}
