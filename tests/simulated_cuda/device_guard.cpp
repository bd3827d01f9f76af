// Indexing asks for a device guard of its tensors' device, which torch built for CPUs alone does not have.
#include <c10/core/impl/DeviceGuardImplInterface.h>
namespace c10::impl {
static DeviceGuardImplRegistrar simulated_cuda_guard(
    DeviceType::CUDA, new NoOpDeviceGuardImpl<DeviceType::CUDA>());
}
